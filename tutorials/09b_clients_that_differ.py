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
# # Clients that differ, and clients that fail
#
# **You will learn** what happens to federated averaging when every client knows other classes, what
# batch norms have to do with it, how to send one bit in both directions, and what a server does
# with answers that are broken.
#
# **You need** federated averaging and the vote on updates of
# [09](09_federated_one_bit.ipynb), and batch norm from [03](03_first_binary_network.ipynb).
#
# **Time** 12 minutes of reading; the cells run in about half a minute on two cores.

# %%
import logging

import matplotlib.pyplot as plt
import numpy as np

import tinybnn
from tinybnn import datasets, federated, models, nn, plots
from tinybnn.federated import wire

# %% [markdown]
# ## The question
#
# In [09](09_federated_one_bit.ipynb) the samples were dealt out at random, so all clients had all
# ten digits. Such data are called *IID*, independent and identically distributed. Real clients
# differ: one writes sevens, another one threes. The extreme case of McMahan et al. are *shards*:
# sort the samples by label, cut the row into pieces, and give each client two of them.

# %%
train, test = datasets.load("digits")
CLIENTS, ROUNDS = 5, 12
parts = federated.iid(len(train), CLIENTS)
skewed = federated.shards(train.labels, CLIENTS, shards_per_client=2, rng=0)

figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
plots.partition(train.labels, parts, ax=axes[0])
plots.partition(train.labels, skewed, ax=axes[1])
axes[0].set_title("IID")
axes[1].set_title("shards")
plt.show()

classes = [len(np.unique(train.labels[part])) for part in skewed]
print("different digits of each client:", classes)

assert max(classes) <= 6 and sorted(np.concatenate(skewed)) == list(range(len(train)))

# %% [markdown]
# **How much accuracy does that cost, and what can be done without any client showing its data?**
#
# ## The naive version: average all the same
#
# The same algorithm, the same network, other clients:


# %%
def network(seed=0):
    return models.mlp(64, (128,), 10, rng=np.random.default_rng(seed))


def federation(strategy, parts=parts, norm="average", build=network, seed=0):
    server = federated.Server(build(seed), strategy, norm=norm, seed=seed)
    clients = [
        federated.Client(k, train[part], build(seed), strategy, norm=norm, seed=seed)
        for k, part in enumerate(parts)
    ]
    return server, clients


def run(strategy, **options):
    """The history of some rounds of training."""
    server, clients = federation(strategy, **options)
    return federated.run_rounds(
        server, clients, ROUNDS, batch_size=16, progress=False,
        validation=datasets.DataLoader(test, 500),
    )  # fmt: skip


average = federated.FedAvg()
found = {"IID": run(average), "shards": run(average, parts=skewed)}
for name, history in found.items():
    print(f"{name:<8}{history['val_accuracy'][-1]:.1%}")

assert found["IID"]["val_accuracy"][-1] > found["shards"]["val_accuracy"][-1] + 0.1

# %% [markdown]
# A client that sees three to five digits trains the model towards these digits, and away from all
# others. Its batch norms do worse: they learn the mean and variance of its digits, and the mean of
# such statistics fits nobody.
#
# ## The better version: norms that nobody moves
#
# There are three ways to treat batch norms: average them like weights; let each client keep its own
# (FedBN), so that each client has another model; or *freeze* them, with statistics of inputs that
# are nobody's data. Here these inputs are noise that everybody can draw.


# %%
def calibrated(seed=0):
    model = network(seed)
    noise = np.random.default_rng(1).uniform(-1, 1, (500, 1, 8, 8)).astype(np.float32)
    federated.calibrate_norms(model, noise)
    return model


frozen = {"norm": "frozen", "build": calibrated}
found["shards, frozen norms"] = run(average, parts=skewed, **frozen)
figure, axes = plt.subplots(figsize=(6, 3))
lines = {name: history["val_accuracy"] for name, history in found.items()}
plots.curves(lines, "test accuracy", "round", ax=axes)
plt.show()

assert lines["shards, frozen norms"][-1] > lines["shards"][-1] + 0.1

# %% [markdown]
# ## Why the average of batch norms breaks
#
# Take one unit and two clients. The sums of client A are 9 and 11, those of client B are -11
# and -9. Each normalizes its own batches, to -1 and 1. What are the averaged statistics, and which
# are those of all four sums?

# %%
a, b = np.float32([9, 11]), np.float32([-11, -9])
both = np.concatenate([a, b])
mean, variance = (a.mean() + b.mean()) / 2, (a.var() + b.var()) / 2
print("trained with:      ", (a - a.mean()) / a.std(), (b - b.mean()) / b.std())
print("averaged, tested:  ", (both - mean) / np.sqrt(variance))
print("variance:          ", variance, "averaged,", both.var(), "of all sums")

assert variance == 1 and both.var() == 101

# %% [markdown]
# The mean of the variances lacks the variance *between* the clients, here 100 of 101. In training
# a unit gave ±1; the averaged network gives ±9 to ±11 for the same samples. And one thing is lost
# that no statistic can repair: in its own batches, client A has subtracted what distinguishes
# its samples from those of B. In the last layer these sums are the class scores. A client that has
# only threes and sevens normalizes the score of "three" over its own samples, so that it is
# positive for one half of them, and the score of "five", of which it has none, just the same. The
# average of such clients knows nothing of how scores compare between clients.
#
# Cure: a norm without statistics. The sum of K signs has a variance of about K, and a constant
# brings that to 1:
#
# $$y = \frac{x}{\sqrt K} + b$$
#
# with a learned shift $b$, the only float of the unit that has to be sent. A sample is treated in
# the same way whoever has it. In front of a sign this is an integer threshold: $y \ge 0$ if
# $x \ge -b\sqrt K$.

# %%
scale = nn.FanInScale(1, fan_in=100)
print(scale(tinybnn.Tensor(both[:, None])).data.ravel())


def norm_free(seed=0):
    return models.mlp(64, (128,), 10, norm="none", rng=np.random.default_rng(seed))


found["shards, norm-free"] = run(average, parts=skewed, build=norm_free)
for name in ("shards", "shards, frozen norms", "shards, norm-free"):
    print(f"{name:<22}{np.mean(found[name]['val_accuracy'][-5:]):.1%}")

entries = federated.Head(norm_free()).entries
print("sent:", [(entry.kind, entry.shape) for entry in entries])

assert found["shards, norm-free"]["val_accuracy"][-1] > lines["shards"][-1] + 0.1
assert [entry.kind for entry in entries] == ["latent", "real"] * 2

# %% [markdown]
# There are other cures. *FedBN* keeps the norms at the clients, which gives as many models as
# clients: compare its accuracy on each client's own classes, not on all. *Layer norms* take their
# statistics from one sample. And a client can be kept from moving too far: by a rate that decays
# from round to round (`lr_decay` of a `Client`), by a penalty on the distance from where the round
# began (FedProx, `proximal`), or by momentum of the server (FedAvgM, `momentum` of a `Server`).
# `tinybnn reproduce fedavg` compares them.

# %% [markdown]
# ## One bit both ways
#
# With the vote on updates, clients send bits and the server answers with floats. With `both=True`
# the server rounds the votes to signs, takes its step in that direction, and sends down *the signs
# of its steps*. A client that still has the weights of an earlier round takes the missed steps
# itself: the same float operations, so it arrives at the same weights, bit for bit. A client that
# comes for the first time gets floats. In this example two of the five clients take part in each
# round; follow client 3, then client 0.

# %%
server, clients = federation(federated.SignOfUpdate(0.02, both=True))
history = federated.run_rounds(server, clients, 4, fraction=0.4, batch_size=16, progress=False)
for transfer in history.ledger.rows:
    way = "up  " if transfer.is_up else "down"
    print(f"round {transfer.round}, client {transfer.client}, {way} {transfer.nbytes:6,} bytes")

down = [transfer.nbytes for transfer in history.ledger.rows if not transfer.is_up]
assert max(down) > 10 * min(down)

# %% [markdown]
# ## Clients that fail
#
# A server on a network gets more than good answers. Each one is checked before it counts: form,
# sender, round, the state that it starts from, values. What does not pass is rejected with a
# reason, and the round goes on with the others. Client 2 sends NaN:


# %%
class Broken:
    """A client whose training ends in NaN."""

    def __init__(self, client):
        self.client = client
        self.number, self.samples, self.version = client.number, client.samples, None

    def train(self, message, **options):
        fields = federated.aggregation.fields(average, head.entries, "up")
        header, arrays = wire.decode(self.client.train(message, **options), fields)
        arrays["1.weight"][0, 0] = np.nan
        return wire.encode(header, list(arrays.values()), list(fields.values()))


logging.getLogger("tinybnn.federated").setLevel(logging.ERROR)
server, clients = federation(average)
head = federated.Head(server.model)
clients[2] = Broken(clients[2])
history = federated.run_rounds(server, clients, 2, batch_size=16, progress=False)
print("accepted:", history["accepted"])
print("rejected:", history["rejected"][0])

assert history["accepted"] == [[0, 1, 3, 4]] * 2
assert all(np.isfinite(array).all() for array in server.model.state_dict().values())

# %% [markdown]
# ## Measured
#
# Frozen norms do not travel either. *times less* compares with FedAvg's floats in the same
# direction; `float16` is FedAvg with half as many bits a number. All clients are IID here.

# %%
histories = {
    "FedAvg, float32": found["IID"],
    "FedAvg, float16": run(federated.FedAvg("float16")),
    "sign of the update": run(federated.SignOfUpdate(0.02)),
    "…, frozen norms": run(federated.SignOfUpdate(0.02), **frozen),
    "…, both ways": run(federated.SignOfUpdate(0.02, both=True)),
}
figure, axes = plt.subplots(figsize=(6.5, 3.4))
print(f"{'':<20}{'bytes up':>10}{'down':>11}{'times less up':>15}{'down':>7}{'accuracy':>10}")
savings, curves = {}, {}
for name, history in histories.items():
    ledger, accuracy = history.ledger, history["val_accuracy"]
    savings[name] = ledger.saving("up"), ledger.saving("down")
    print(
        f"{name:<20}{ledger.total('up'):>10,}{ledger.total('down'):>11,}"
        f"{savings[name][0]:>15.1f}{savings[name][1]:>7.1f}{accuracy[-1]:>10.1%}"
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
# With frozen norms a message comes close to 32 times less, since only bits are left in it. One run
# each: read differences of a point or two in accuracy as noise.
#
# ## In the package
#
# | what | where |
# |---|---|
# | who gets which samples | [`federated/partition.py`](../tinybnn/federated/partition.py) |
# | what is shared of a model, frozen norms | [`federated/head.py`](../tinybnn/federated/head.py) |
# | rounds, the ledger, rejected answers | [`federated/rounds.py`](../tinybnn/federated/rounds.py) |
# | messages | [`federated/wire.py`](../tinybnn/federated/wire.py) |
#
# What a client answers is decided by its number, the round, the seed and the bytes that it got. So
# the same federation gives the same weights wherever it runs:

# %%
again = run(federated.SignOfUpdate(0.02, both=True))

assert again["val_accuracy"] == histories["…, both ways"]["val_accuracy"]

# %% [markdown]
# `Client.train` takes bytes and gives bytes, so the network between them can be a real one. The
# extra `flower` carries them with Flower, and `tinybnn federated new DIR` writes an app to start
# from:
#
#     pip install 'tinybnn[flower]'
#     tinybnn federated simulate --clients 3 --rounds 5
#
# ## Summary
#
# Skewed labels cost federated averaging much of its accuracy, and a large part of that are batch
# norms, whose averaged statistics fit no client; norms frozen with statistics of noise, or sums
# divided by a constant instead of norms, avoid it.
# The server, too, can send one bit a weight, if clients take its steps themselves. Every answer is
# checked before it counts, and a broken one is left out of the round.
#
# ## Exercises
#
# The exercises of this chapter are in [09](09_federated_one_bit.ipynb). Think about:
#
# 1. Train with `norm="local"` on the shards. Each client then has its own norms; on whose test data
#    should such a model be evaluated?
# 2. With `both=True` a client that was away for 31 rounds gets 31 signs for each weight. Why not
#    for 32?
# 3. A client sends finite but huge weights. Which check of the server could find it, and what does
#    a vote on signs do to such a client?
#
# ## Sources
#
# - B. McMahan et al.: *Communication-Efficient Learning of Deep Networks from Decentralized Data*
#   (2017): federated averaging and the shards.
# - T. Li et al.: *Federated Optimization in Heterogeneous Networks* (2020): FedProx.
# - T. Hsu et al.: *Measuring the Effects of Non-Identical Data Distribution for Federated Visual
#   Classification* (2019): momentum of the server.
# - X. Li et al.: *FedBN: Federated Learning on Non-IID Features via Local Batch Normalization*
#   (2021).
# - J. Bernstein et al.: *signSGD: Compressed Optimisation for Non-Convex Problems* (2018): one bit
#   both ways.
# - HyBNN and FedHyBNN: *Federated Hybrid Binary Neural Networks*: three clients that share binary
#   heads; `tinybnn reproduce fedhybnn`.
