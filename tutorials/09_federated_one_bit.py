# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Federated learning with one bit a weight
#
# **You will learn** federated averaging by writing it; why a vote on the signs of weights learns
# nothing, while a vote on the signs of updates does; how a random bit can have the right mean and
# still be a bad message; and what all of it costs in bytes.
#
# **You need** latent weights, training and the digits of [03](03_first_binary_network.ipynb), and
# signs packed into words from [04](04_xnor_and_popcount.ipynb).
#
# **Time** 14 minutes of reading; the cells run in about half a minute on two cores.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

from tinybnn import datasets, federated, models, optim, plots, training
from tinybnn.federated import wire
from tinybnn.kernels.bits import pack

# %% [markdown]
# ## The question
#
# Several *clients*, say hospitals, hold data that must not leave them. A *server* holds a model. In
# each *round* the server sends the model to the clients, each trains it on its own data for a
# while, and what they send back is combined into the next model. Only weights travel.
#
# Here is one weight of a binary layer, a latent weight $w = 0.10$. Three clients have trained it:
#
# | client | samples $n_k$ | its weight $w_k$ | sign of $w_k$ | sign of $w_k - w$ |
# |---|---|---|---|---|
# | 0 | 300 | 0.16 | + | + |
# | 1 | 100 | 0.04 | + | - |
# | 2 | 200 | 0.13 | + | + |
#
# A float takes 32 bits to send. **If each client may send one bit for this weight, which bit, and
# what does the server do with the bits?** The network computes with signs, so the sign of $w_k$
# seems to be the natural answer. It is the wrong one.

# %%
w, trained, counts = 0.10, np.array([0.16, 0.04, 0.13]), np.array([300, 100, 200])
mean = (counts * trained).sum() / counts.sum()
votes = (counts * np.sign(trained - w)).sum() / counts.sum()
print(f"mean of the weights {mean:.2f}; mean of the signs of the updates {votes:+.2f}")

assert np.isclose(mean, 0.13) and np.isclose(votes, 2 / 3) and np.all(np.sign(trained) == 1)

# %% [markdown]
# The network for this notebook has 64 inputs (pixels), 128 hidden units and 10 outputs. Five
# clients share the 1,437 training images of the digits. Everybody begins with the same weights.

# %%
train, test = datasets.load("digits")
CLIENTS, ROUNDS = 5, 12


def network(seed=0):
    return models.mlp(64, (128,), 10, rng=np.random.default_rng(seed))


parts = federated.iid(len(train), CLIENTS)
counts = [len(part) for part in parts]
print("samples of each client:", counts)

assert sum(counts) == len(train) == 1437

# %% [markdown]
# ## The naive version: average the weights
#
# *Federated averaging*, FedAvg for short: client $k$ trains the server's weights $w$ to $w_k$, and
# with $N$ samples in all the server takes the mean, weighted by samples:
#
# $$w \leftarrow \frac{1}{N} \sum_k n_k w_k$$
#
# For a binary layer these are the latent weights. The batch norms are averaged like all else. (What
# is no weight, such as the number of batches that a batch norm has seen, is an integer; there the
# largest counts.) That is the whole algorithm.


# %%
def copy_of(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


def local_training(shared, k, number):
    """What client k makes of the shared state in a round: one pass over its data."""
    model, rng = network(), np.random.default_rng([0, k, number])
    model.load_state_dict(shared)
    loader = datasets.DataLoader(train[parts[k]], 16, shuffle=True, rng=rng)
    adam = optim.Adam(model.parameters(), lr=0.01)
    training.fit(model, loader, epochs=1, optimizer=adam, progress=False)
    return copy_of(model)


def average(arrays, counts):
    """The mean over clients, weighted by samples."""
    total = sum(n * array.astype(np.float64) for n, array in zip(counts, arrays, strict=True))
    return (total / sum(counts)).astype(np.float32)


shared = copy_of(network())
for number in (1, 2, 3):
    states = [local_training(shared, k, number) for k in range(CLIENTS)]
    for name, old in shared.items():
        arrays = [state[name] for state in states]
        shared[name] = np.max(arrays, axis=0) if old.dtype == np.int64 else average(arrays, counts)

by_hand = network()
by_hand.load_state_dict(shared)
by_hand.eval()
found = training.evaluate(by_hand, datasets.DataLoader(test, 500))
print(f"test accuracy after three rounds {found['accuracy']:.1%}")

assert found["accuracy"] > 0.6

# %% [markdown]
# Why float64 inside? A float32 product rounds, so that the mean of five equal weights may come out
# as another weight. In float64 each product is exact, and the mean is rounded once.
#
# The package does the same with two kinds of objects. A `Client` has data, and takes and gives
# bytes; a `Server` has the model, and never sees a client, only numbers and bytes. A *strategy*
# says what travels. Three rounds must give our weights:


# %%
def run(strategy, rounds=ROUNDS, seed=0):
    """A server and five clients, for some rounds: the server and the history."""
    server = federated.Server(network(seed), strategy, seed=seed)
    clients = [
        federated.Client(k, train[part], network(seed), strategy, seed=seed)
        for k, part in enumerate(parts)
    ]
    history = federated.run_rounds(
        server, clients, rounds, batch_size=16, progress=False,
        validation=datasets.DataLoader(test, 500),
    )  # fmt: skip
    return server, history


server, _ = run(federated.FedAvg(), rounds=3)
for name, array in server.model.state_dict().items():
    assert np.array_equal(array, shared[name]), name

# %% [markdown]
# ## The vote that freezes
#
# FedAvg sends 32 bits for each weight. Now let each client send the *sign* of each weight, and let
# the majority win, each client with as many votes as it has samples. Where the votes are equal the
# old sign stays.

# %%
signs = np.array([[1, 1, 1, -1], [-1, -1, 1, 1], [-1, -1, -1, 1]])  # a row for each client
before = np.array([-1, 1, 1, -1])
ballot = np.array([5, 2, 3]) @ signs
print("votes ", ballot)
print("result", np.where(ballot == 0, before, np.sign(ballot)))

vote, voted = run(federated.MajorityVote())
first, last = (model[1].binary_weight() for model in (network(), vote.model))
flipped = np.count_nonzero(first != last)
print(f"{flipped} of {first.size:,} weights have flipped in {ROUNDS} rounds")

assert ballot.tolist() == [0, 0, 4, 0] and flipped == 0

# %% [markdown]
# Not one weight has moved. The reason is in the sizes. Signs are all that the server knows of the
# weights, so each round begins with latent weights of ±1. To flip, a weight has to go from ±1
# across 0: a change of more than 1. How far does one round of training move a weight?

# %%
model = network()
latent = np.where(model[1].weight.data >= 0, np.float32(1), np.float32(-1))
model[1].weight.data[...] = latent
change = np.abs(local_training(copy_of(model), 0, 1)["1.weight"] - latent)

figure, axes = plt.subplots(figsize=(6, 2.4))
axes.hist(change.ravel(), bins=50, range=(0, 1.05), color=plots.MINUS)
axes.axvline(1, color=plots.PLUS)
axes.set(xlabel="change of a latent weight in a round; at the line it flips", ylabel="weights")
plt.show()
print(f"largest change: {change.max():.3f}")

assert change.max() < 0.5

# %% [markdown]
# What the clients learned is gone with the next broadcast, in every round. (Its accuracy is not
# that of chance, since the batch norms around the frozen weights are still trained.)
#
# ## The vote that learns
#
# Send the sign of the *update* instead: in which direction the training moved each weight. It is
# one bit as well. The server keeps latent floats and takes a small step $\eta$ in the direction of
# the votes $s_k = \mathrm{sign}(w_k - w)$:
#
# $$w \leftarrow w + \eta \, \frac{1}{N} \sum_k n_k s_k$$
#
# For the weight of the table and $\eta = 0.02$ this is $0.10 + 0.02 \cdot 0.67 = 0.113$. The server
# gathers what the rounds say until a sign changes. This is the latent weight of
# [03](03_first_binary_network.ipynb) again: something has to remember small steps. Voting on signs
# of weights threw that memory away.
#
# A weight that has not changed has no direction, and yet one bit must be sent. A fixed bit would
# push all such weights one way, round after round; so a coin decides.


# %%
def directions(before, after, coin):
    """Signs of the updates of one client, ±1."""
    return np.where(after == before, coin, np.where(after > before, 1, -1))


before = np.float32([[0.5, -0.25, 0.75, -0.01]])
after = np.float32([[0.4, -0.20, 0.75, 0.03]])
coin = np.float32([[1, 1, -1, 1]])
s = directions(before, after, coin)
words = pack(s.astype(np.float32))
print(f"signs {s[0]} -> word {words[0, 0]:#06b} (the first sign is the last bit)")

step, direction = (
    0.02,
    (3 * s + 1 * -s) / 4,
)  # a second client, with a third of the samples, objects
print("new weights", (before + step * direction).round(2))

assert words[0, 0] == 0b1010 and np.allclose(direction, s / 2)

# %% [markdown]
# The last weight comes from -0.01 to 0.00, and has flipped. Twelve rounds:

# %%
signs, signed = run(federated.SignOfUpdate(0.02))
moved = signs.model[1].binary_weight()
share = np.mean(first != moved)
print(f"{share:.1%} of the weights have flipped")
print(f"test accuracy {signed['val_accuracy'][-1]:.1%}, by votes on signs of weights "
      f"{voted['val_accuracy'][-1]:.1%}")  # fmt: skip

assert share > 0.05
assert signed["val_accuracy"][-1] > voted["val_accuracy"][-1] + 0.1

# %% [markdown]
# ## A random bit with the right mean
#
# There is another way to send a weight $w$ in $[-1, 1]$ with one bit: a random sign $s$, whose
# *expectation* is $w$. If $s = +1$ has the probability $p$, the expectation is $p - (1 - p) = 2p -
# 1$. It is $w$ for
#
# $$p = \frac{1 + w}{2}.$$
#
# For $w = 0.5$ the sign is +1 in 75 of 100 draws, and their mean is $0.75 - 0.25 = 0.5$.

# %%
rng = np.random.default_rng(0)
weights = np.array([-1.0, -0.5, 0.0, 0.1, 0.5])
draws = np.where(rng.random((100_000, 5)) < (1 + weights) / 2, 1, -1)
print("weights", weights)
print("means  ", draws.mean(0).round(3))
print("spread of one draw", draws.std(0).round(2))

assert np.allclose(draws.mean(0), weights, atol=0.02)
assert np.allclose(draws.std(0), np.sqrt(1 - weights**2), atol=0.02)

# %% [markdown]
# So the server's mean is FedAvg's, in expectation: the message is *unbiased*. But look at the
# spread. Since $s^2 = 1$, the variance of one draw is $1 - w^2$: near 1 for the small latent
# weights, most of a network. With five clients the mean of five draws is one of -1, -0.6, …, 1. The
# weight was 0.1; its sign after the round is nearly that of a coin.
#
# ## Bytes on the wire
#
# A message has rows of bits for the weights of binary layers, each row filled to whole bytes, and
# floats for batch norms. A row of 64 signs takes 8 bytes, a row of 9 signs 2.

# %%
shapes = [array.shape for array in network().state_dict().values() if array.ndim]


def row_bytes(k):
    return math.ceil(k / 8)


weights = 128 * 64 + 10 * 128
in_bits = 128 * row_bytes(64) + 10 * row_bytes(128)
others = sum(math.prod(shape) for shape in shapes if len(shape) == 1)
print(f"weights: {4 * weights:,} bytes as floats, {in_bits:,} as bits")
print(f"batch norms: {4 * others:,} bytes")

assert in_bits * 32 == 4 * weights and row_bytes(9) == 2

# %% [markdown]
# The weights are 32 times smaller, the message is not: the floats of the batch norms do not shrink.
# In the package all that passes is bytes, and a *ledger* counts each message. A message has a frame
# of 60 bytes, a line for each array, and the arrays.

# %%
strategy = federated.SignOfUpdate(0.02)
server = federated.Server(network(), strategy)
client = federated.Client(0, train[parts[0]], network(), strategy)
server.open_round([0])
message = server.broadcast()
answer = client.train(message, batch_size=16)
print(f"down {len(message):,} bytes, up {len(answer):,} bytes")

assert in_bits + 4 * others < len(answer) < 1.2 * (in_bits + 4 * others)
assert wire.size([]) == 60

# %% [markdown]
# ## Measured
#
# Four messages, each with three seeds (first weights, order of the samples, coins). The column *up*
# says how many times less than FedAvg's floats is sent from clients to the server.

# %%
strategies = {
    "FedAvg, floats": federated.FedAvg(),
    "sign of the update": federated.SignOfUpdate(0.02),
    "random sign of the weight": federated.StochasticSign(),
    "sign of the weight": federated.MajorityVote(),
}
histories = {
    name: [run(strategy, seed=seed)[1] for seed in range(3)]
    for name, strategy in strategies.items()
}

print(f"{'':<27}{'accuracy of three seeds':<27}{'up':>5}")
accuracies, savings = {}, {}
for name, three in histories.items():
    accuracies[name] = np.array([history["val_accuracy"][-1] for history in three])
    savings[name] = three[0].ledger.saving("up")
    print(f"{name:<27}{'  '.join(f'{a:.1%}' for a in accuracies[name]):<27}{savings[name]:5.1f}")

figure, axes = plt.subplots(figsize=(6.5, 3))
lines = {name: np.mean([h["val_accuracy"] for h in three], 0) for name, three in histories.items()}
plots.curves(lines, "test accuracy", "round", ax=axes)
plots.legend_beside(axes)
plt.show()

least = {name: values.min() for name, values in accuracies.items()}
assert least["sign of the update"] > accuracies["FedAvg, floats"].mean() - 0.06
assert least["sign of the update"] > accuracies["random sign of the weight"].max()
assert least["random sign of the weight"] > accuracies["sign of the weight"].max()
assert savings["FedAvg, floats"] == 1 and savings["sign of the update"] > 10

# %% [markdown]
# All three one-bit messages are equally long. The sign of the update comes within a few points of
# floats in each seed; the random sign learns, but its noise stays the same in every round; with the
# sign of the weight only the batch norms learn.
#
# ## In the package
#
# The rules are in [`federated/aggregation.py`](../tinybnn/federated/aggregation.py), each with
# `encode` (on the client) and `aggregate` (on the server); bytes are made in
# [`federated/wire.py`](../tinybnn/federated/wire.py). With the same coins they must agree with our
# formulas, bit for bit.

# %%
rng = np.random.default_rng(1)
before = rng.uniform(-1, 1, (128, 64)).astype(np.float32)
trained = [before + rng.integers(-1, 2, before.shape).astype(np.float32) / 50 for _ in counts]

received, ours = [], []
for k, after in enumerate(trained):
    received.append(strategy.encode(before, after, 1.0, np.random.default_rng(k)))
    coin = np.random.default_rng(k).integers(0, 2, before.shape, np.int8) * 2 - 1
    ours.append(directions(before, after, coin))
new = strategy.aggregate(before, received, counts, 1.0, rng)
ours_new = np.clip(before + np.float32(0.02) * average(ours, counts), -1, 1)

assert np.array_equal(received, ours)
assert np.array_equal(new, ours_new)

# %% [markdown]
# ## Summary
#
# Federated averaging takes the mean of what clients have trained, weighted by their samples; for
# binary layers it is a mean of latent weights. A majority vote on the signs of weights freezes the
# network, because a round moves a weight by far less than the distance to 0. A vote on the signs of
# updates costs the same bit and learns, because the server's latent weights gather small steps. A
# random sign is unbiased, but its variance is near 1 for small weights. Weights shrink 32 times;
# whole messages shrink less, since batch norms stay floats.
#
# ## Exercises
#
# | number | name | task |
# |---|---|---|
# | 09.1 | `weighted_mean` | federated averaging of one array |
# | 09.2 | `majority_vote` | the sign that most samples are for; a tie keeps the old one |
# | 09.3 | `update_bits` | the direction of each weight's update, packed with your `pack` |
# | 09.4 | `server_step` | the server's step in the direction of the votes |
# | 09.5 | `stochastic_sign` | a random sign whose expectation is the weight |
# | 09.6 | `message_bytes` | the bytes of a message, as bits or as floats |
#
# Write them in `mybnn/averaging.py` beside this notebook. Then `tinybnn course check 09` says what
# is right and what is not, and `tinybnn course hint 09.2` helps. The state of your answers:

# %%
from tinybnn import course  # noqa: E402

course.show("09")

# %% [markdown]
# Think about:
#
# 1. Where is the limit of the server's step? Try `SignOfUpdate` with 0.005, 0.1 and 0.5. What does
#    a step of 1 amount to?
# 2. How does the variance of the random sign's mean change with the number of clients? How many
#    would you need for the spread of FedAvg's own weights, about 0.05?
#
# Clients whose data differ, and clients that fail, are the subject of
# [09b](09b_clients_that_differ.ipynb).
#
# ## Sources
#
# - B. McMahan et al.: *Communication-Efficient Learning of Deep Networks from Decentralized Data*
#   (2017): federated averaging.
# - J. Bernstein et al.: *signSGD: Compressed Optimisation for Non-Convex Problems* (2018): majority
#   vote on signs of gradients.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
