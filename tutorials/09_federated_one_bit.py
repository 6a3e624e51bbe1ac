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
# **You will learn** federated averaging by writing it, what skewed labels do to it, why a vote on
# the signs of weights learns nothing while a vote on the signs of updates does, and what all of it
# costs in bytes on the wire.
#
# **You need** tutorial 03. Reading takes about twenty minutes, running about half a minute on two
# CPU cores.
#
# The setting: several clients hold data that must not leave them. A server holds a model. In each
# round the server sends the model to clients, each trains it on its own data, and what comes back
# is put together into the next model. Only weights travel; and as the weights of a binary network
# are signs, it is tempting to let only signs travel.

# %%
import logging

import matplotlib.pyplot as plt
import numpy as np

from tinybnn import datasets, federated, models, optim, plots, training
from tinybnn.federated import wire

train, test = datasets.load("digits")
CLIENTS, ROUNDS = 5, 12


def network():
    """The same first weights for everybody: 64 pixels, 128 hidden units, 10 digits."""
    return models.mlp(64, (128,), 10, rng=np.random.default_rng(0))


parts = federated.iid(len(train), CLIENTS)
print(train)
print("samples of each client:", [len(part) for part in parts])

# %% [markdown]
# ## Federated averaging by hand
#
# Client $k$ with $n_k$ samples starts from the server's weights $w$ and trains for $E$ epochs to
# $w_k$. The server takes the mean, weighted by samples:
#
# $$w \leftarrow \sum_k \frac{n_k}{N} w_k$$
#
# The weights of a binary layer are latent floats, and their signs are what the network computes
# with. The mean is one of latent weights. Nothing else is needed for the whole algorithm.


# %%
def copy_of(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


def local_training(shared, k, number):
    """What client k makes of the shared state in one round: one epoch, batches of 16."""
    model, rng = network(), np.random.default_rng([0, k, number])
    model.load_state_dict(shared)
    loader = datasets.DataLoader(train[parts[k]], 16, shuffle=True, rng=rng)
    adam = optim.Adam(model.parameters(), lr=0.01)
    training.fit(model, loader, epochs=1, optimizer=adam, progress=False)
    return copy_of(model)


shared = copy_of(network())
counts = [len(part) for part in parts]
for number in (1, 2, 3):
    trained = [local_training(shared, k, number) for k in range(CLIENTS)]
    for name, old in shared.items():
        stack = np.array([one[name] for one in trained], np.float64)
        mean = np.average(stack, axis=0, weights=counts)
        # The number of batches that a batch norm has seen is no weight: the largest counts.
        shared[name] = (stack.max(0) if old.dtype == np.int64 else mean).astype(old.dtype)

by_hand = network()
by_hand.load_state_dict(shared)
by_hand.eval()
print(training.evaluate(by_hand, datasets.DataLoader(test, 500)))

# %% [markdown]
# The library does the same with two kinds of objects. A `Client` has data, and takes and gives
# bytes; a `Server` has the model, and never sees a client, only numbers and bytes. What one client
# answers in a round is decided by its number, the round and the bytes that it got, so the same
# round gives the same weights wherever it runs.


# %%
def federation(strategy, parts=parts, norm="average", build=network):
    server = federated.Server(build(), strategy, norm=norm)
    clients = [
        federated.Client(k, train[part], build(), strategy, norm=norm)
        for k, part in enumerate(parts)
    ]
    return server, clients


def run(strategy, rounds=ROUNDS, **options):
    server, clients = federation(strategy, **options)
    history = federated.run_rounds(
        server, clients, rounds, batch_size=16, progress=False,
        validation=datasets.DataLoader(test, 500),
    )  # fmt: skip
    return server, history


server, history = run(federated.FedAvg(), rounds=3)
print(history["val_accuracy"])

for name, array in server.model.state_dict().items():
    np.testing.assert_allclose(array, shared[name], rtol=2e-7, atol=1e-9)

# %% [markdown]
# What is a good result? One machine with all the data, and as many epochs.

# %%
central, rng = network(), np.random.default_rng(0)
whole = training.fit(
    central, datasets.DataLoader(train, 16, shuffle=True, rng=rng), epochs=ROUNDS,
    optimizer=optim.Adam(central.parameters(), lr=0.01), progress=False,
    validation=datasets.DataLoader(test, 500),
)  # fmt: skip
_, averaged = run(federated.FedAvg())

figure, axes = plt.subplots(figsize=(6, 3))
lines = {"one machine": whole["val_accuracy"], "FedAvg": averaged["val_accuracy"]}
plots.curves(lines, "test accuracy", "round", ax=axes)
plt.show()

assert averaged["val_accuracy"][-1] > 0.8

# %% [markdown]
# ## Who has which labels
#
# So far the samples were dealt out at random. Real clients differ. `shards` is the partition of
# McMahan et al.: sort by label, cut, and give each client two pieces. Each then knows two or three
# digits only.

# %%
skewed = federated.shards(train.labels, CLIENTS, shards_per_client=2, rng=0)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
plots.partition(train.labels, parts, ax=axes[0])
plots.partition(train.labels, skewed, ax=axes[1])
axes[0].set_title("IID")
axes[1].set_title("shards")
plt.show()

assert max(len(np.unique(train.labels[part])) for part in skewed) <= 6

# %% [markdown]
# A client that sees few digits trains the model towards these digits, and away from all others. Its
# batch norms do worse: they learn the statistics of its digits, and the mean of such statistics
# fits nobody. There are three ways to treat them: average them like weights, let each client keep
# its own, or freeze them with statistics of inputs that are nobody's, here noise that everybody can
# draw.


# %%
def calibrated():
    model = network()
    noise = np.random.default_rng(1).uniform(-1, 1, (500, 1, 8, 8)).astype(np.float32)
    federated.calibrate_norms(model, noise)
    return model


found = {
    "IID, averaged": averaged,
    "shards, averaged": run(federated.FedAvg(), parts=skewed)[1],
    "shards, frozen": run(federated.FedAvg(), parts=skewed, norm="frozen", build=calibrated)[1],
}
figure, axes = plt.subplots(figsize=(6, 3))
lines = {name: history["val_accuracy"] for name, history in found.items()}
plots.curves(lines, "test accuracy", "round", ax=axes)
plt.show()

assert lines["IID, averaged"][-1] > lines["shards, averaged"][-1] + 0.1
assert lines["shards, frozen"][-1] > lines["shards, averaged"][-1] + 0.1

# %% [markdown]
# ## The vote that freezes
#
# The network computes with signs. So let each client send the signs of its weights, one bit each,
# and let the majority win: that looks like the natural average of binary networks.

# %%
vote, voted = run(federated.MajorityVote())
first, last = (model[1].binary_weight() for model in (network(), vote.model))
flipped = np.count_nonzero(first != last)
print(f"{flipped} of {first.size:,} weights have flipped in {ROUNDS} rounds")

assert flipped == 0

# %% [markdown]
# Not one weight has moved. The reason is in the sizes. Signs are all that the server knows of the
# weights, so each round begins with latent weights of ±1. To flip, a weight has to go from ±1
# across 0: a change of more than 1. The steps of one round are far shorter.

# %%
layer = network()[1]
latent = np.where(layer.weight.data >= 0, 1, -1).astype(np.float32)
model = network()
model[1].weight.data[...] = latent
loader = datasets.DataLoader(train[parts[0]], 16, shuffle=True, rng=np.random.default_rng(0))
adam = optim.Adam(model.parameters(), lr=0.01)
training.fit(model, loader, epochs=1, optimizer=adam, progress=False)
change = np.abs(model[1].weight.data - latent)

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
# one bit as well. The server keeps latent floats, takes a small step in the direction of the votes,
#
# $$w \leftarrow w + \eta \sum_k \frac{n_k}{N} \, \mathrm{sign}(w_k - w)$$
#
# and so gathers what the rounds say until a sign changes. This is where the latent weight of
# tutorial 03 appears again: something has to remember small steps. Voting on signs of weights threw
# that memory away.

# %%
signs, signed = run(federated.SignOfUpdate(0.02))
moved = signs.model[1].binary_weight()
print(f"{np.count_nonzero(first != moved) / first.size:.1%} of the weights have flipped")

figure, axes = plt.subplots(figsize=(6, 3))
lines = {
    "FedAvg, 32 bits up": averaged["val_accuracy"],
    "sign of the update, 1 bit up": signed["val_accuracy"],
    "majority vote of signs, 1 bit up": voted["val_accuracy"],
}
plots.curves(lines, "test accuracy", "round", ax=axes)
plt.show()

assert np.count_nonzero(first != moved) > 0.05 * first.size
assert signed["val_accuracy"][-1] > voted["val_accuracy"][-1] + 0.1
assert signed["val_accuracy"][-1] > averaged["val_accuracy"][-1] - 0.05

# %% [markdown]
# ## Bytes on the wire
#
# All that passes between server and clients is bytes, and a ledger counts each message. The size of
# a message is known before it is made: a frame of 60 bytes, a line for each array, and the arrays;
# a row of $K$ signs takes $\lceil K/8 \rceil$ bytes.

# %%
server, (client, *_) = federation(federated.SignOfUpdate(0.02))
server.open_round([0])
message = server.broadcast()
answer = client.train(message, batch_size=16)
print(f"down {len(message):,} bytes, up {len(answer):,} bytes; it begins with {answer[:4]!r}")
print(wire.read_header(answer))

weights = 128 * 64 + 10 * 128
in_bits = 128 * (64 // 8) + 10 * (128 // 8)
print(f"weights: {4 * weights:,} bytes as floats, {in_bits:,} as bits")

assert in_bits * 32 == 4 * weights
assert wire.size([]) == 60

# %% [markdown]
# The weights are 32 times smaller, the message is not: the floats of the batch norms and the frame
# do not shrink. Freeze the batch norms and it comes close. With `both=True` the server, too, sends
# only the directions of its steps, and clients take these steps themselves.

# %%
frozen = {"norm": "frozen", "build": calibrated}
histories = {
    "FedAvg, float32": averaged,
    "FedAvg, float16": run(federated.FedAvg("float16"))[1],
    "sign of the update": signed,
    "…, frozen norms": run(federated.SignOfUpdate(0.02), **frozen)[1],
    "…, both ways": run(federated.SignOfUpdate(0.02, both=True))[1],
}
figure, axes = plt.subplots(figsize=(6.5, 3.4))
print(f"{'':<20}{'up':>10}{'down':>11}{'times less up':>15}{'down':>7}{'accuracy':>10}")
savings, curves = {}, {}
for name, history in histories.items():
    ledger, accuracy = history.ledger, history["val_accuracy"]
    savings[name] = ledger.saving("up"), ledger.saving("down")
    print(
        f"{name:<20}{ledger.total('up'):>10,}{ledger.total('down'):>11,}"
        f"{savings[name][0]:>15.1f}{savings[name][1]:>7.1f}{accuracy[-1]:>10.2%}"
    )
    sent = np.cumsum(np.add(history["bytes_up"], history["bytes_down"]))
    curves[name] = sent / 1e3, accuracy
plots.curves_through(curves, ax=axes)
axes.set(xlabel="kB sent, both ways", ylabel="test accuracy")
plots.legend_beside(axes)
plt.show()

assert savings["FedAvg, float32"] == (1, 1)
assert savings["…, frozen norms"][0] > 20 > savings["sign of the update"][0] > 10
assert savings["…, both ways"][1] > 5

# %% [markdown]
# ## Clients that fail
#
# A server on a network gets more than good answers. Each one is checked before it counts: form,
# sender, round, the state that it starts from, values. What does not pass is rejected with a
# reason, and the round goes on with the others.


# %%
class Broken:
    """A client whose training ends in NaN."""

    def __init__(self, client):
        self.client = client
        self.number, self.samples, self.version = client.number, client.samples, None

    def train(self, message, **options):
        fields = federated.aggregation.fields(federated.FedAvg(), head.entries, "up")
        answer = self.client.train(message, **options)
        header, arrays = wire.decode(answer, fields)
        arrays["1.weight"][0, 0] = np.nan
        return wire.encode(header, list(arrays.values()), list(fields.values()))


logging.getLogger("tinybnn.federated").setLevel(logging.ERROR)
server, clients = federation(federated.FedAvg())
head = federated.Head(server.model)
clients[2] = Broken(clients[2])
history = federated.run_rounds(server, clients, 2, batch_size=16, progress=False)
print(history["accepted"], history["rejected"][0])

assert history["accepted"] == [[0, 1, 3, 4]] * 2
assert all(np.isfinite(array).all() for array in server.model.state_dict().values())

# %% [markdown]
# ## On several machines
#
# `Client.train` takes bytes and gives bytes, so the network between can be a real one. The extra
# `flower` carries them with Flower, and `tinybnn federated new DIR` writes an app to start from:
#
#     pip install 'tinybnn[flower]'
#     tinybnn federated simulate --clients 3 --rounds 5
#
# The weights are those of the loop above, bit for bit.
#
# ## Exercises
#
# 1. Where is the limit of the server's step? Try `SignOfUpdate` with 0.005, 0.02, 0.1 and 0.5. What
#    does a step of 1 amount to?
# 2. `StochasticSign` sends a random bit whose expectation is the weight, so its mean is FedAvg's.
#    Why is it so much slower? (Its variance is in the docstring.) How does it change with the
#    number of clients?
# 3. Let only two of the five clients take part in each round (`fraction=0.4`) with `both=True`. Who
#    gets how many bytes, and why? The first lines are given.

# %%
server, clients = federation(federated.SignOfUpdate(0.02, both=True))
history = federated.run_rounds(server, clients, 4, fraction=0.4, batch_size=16, progress=False)
for transfer in history.ledger.rows[:4]:
    print(transfer)

# %% [markdown]
# ## Sources
#
# - B. McMahan et al.: *Communication-Efficient Learning of Deep Networks from Decentralized Data*
#   (2017): federated averaging and the shards.
# - J. Bernstein et al.: *signSGD: Compressed Optimisation for Non-Convex Problems* (2018): majority
#   vote on signs of gradients.
# - X. Li et al.: *FedBN: Federated Learning on Non-IID Features via Local Batch Normalization*
#   (2021).
# - HyBNN and FedHyBNN: *Federated Hybrid Binary Neural Networks*: three clients that share binary
#   heads; `tinybnn reproduce fedhybnn`.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
