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
# # Your first binary network
#
# **You will learn** how a network with ±1 weights is trained: latent weights, clipping, batch norm,
# cross entropy and Adam, each with a small example; and why the trained network can run on bits and
# still give exactly the same answers.
#
# **You need** dot products of signs as bits ([00](00_bits_and_signs.ipynb)), Tensors and their
# gradients ([01](01_autograd_from_scratch.ipynb), [01b](01b_autograd_on_arrays.ipynb)), and the
# straight-through estimator ([02](02_the_gradient_of_sign.ipynb)).
#
# **Time** 13 minutes of reading, under a minute of running on two cores.

# %%
import contextlib

import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import datasets, deploy, nn, optim, plots, quantizers, training
from tinybnn import functional as F

# %% [markdown]
# ## The question
#
# Here are handwritten digits of 8×8 pixels, each pixel a number between -1 (white) and 1 (black).
# They come with the package: 1,437 to learn from and 360 to test on, by other writers than most of
# the 1,437. We want a network to read them in which every weight is $+1$ or $-1$: one bit instead
# of 32. How many of the 360 will it read correctly, and how many with real weights?

# %%
train, test = datasets.load("digits")
x_train, y_train = next(iter(datasets.DataLoader(train, batch_size=len(train))))
x_test, y_test = next(iter(datasets.DataLoader(test, batch_size=len(test))))

figure, sides = plt.subplots(1, 10, figsize=(9, 1.2))
for axes, image, label in zip(sides, x_train, y_train, strict=False):
    axes.imshow(image[0], cmap="gray_r")
    axes.set(title=str(label), xticks=[], yticks=[])
plt.show()

assert x_train.shape == (1437, 1, 8, 8) and x_test.shape == (360, 1, 8, 8)

# %% [markdown]
# ## The naive version
#
# Learn with real weights, and take their signs at the end. The simplest network has one layer: ten
# scores for each image, each a weighted sum of the 64 pixels, and the largest score is the answer.
# Least squares finds the weights whose scores come nearest to 1 for the right digit and 0 for the
# others.

# %%
flat, flat_test = x_train.reshape(-1, 64), x_test.reshape(-1, 64)
weights = np.linalg.lstsq(flat, np.eye(10)[y_train], rcond=None)[0]  # (64, 10)


def read_rightly(weights):
    return np.mean((flat_test @ weights).argmax(1) == y_test)


signs = np.where(weights >= 0, 1, -1)
print(f"real weights {read_rightly(weights):.1%}, their signs {read_rightly(signs):.1%}")

assert read_rightly(signs) < read_rightly(weights) - 0.1

# %% [markdown]
# Rounding at the end ruins the answer: no weight was chosen with the rounding of the others in
# mind. The signs must be present *while* the network learns.
#
# ## A binary layer by hand
#
# For each weight we keep a real number, the *latent* weight. The layer computes only with its sign,
# and the straight-through estimator passes the gradient through the sign to the latent weight. Here
# all latent weights lie inside $[-1, 1]$, so each receives the gradient of its sign:

# %%
rng = np.random.default_rng(0)
latent = tb.Tensor(rng.uniform(-1, 1, (3, 8)).astype(np.float32), requires_grad=True)  # 8 -> 3
x = tb.Tensor(rng.normal(size=(5, 8)).astype(np.float32))  # 5 inputs

sign = quantizers.ste_sign
y = sign(x) @ sign(latent).T
print(y.data)

y.sum().backward()
print("gradient of the first latent weights:", latent.grad.data[0])

assert np.array_equal(latent.grad.data[0], sign(x).data.sum(0))

# %% [markdown]
# Every output is a sum of eight products of ±1: an even integer between -8 and 8, since flipping
# one sign changes the sum by 2. Floats hold such integers exactly, so `==` is the right comparison.
# `nn.BinaryLinear` wraps this line in a module:

# %%
layer = nn.BinaryLinear(8, 3)
layer.weight.data[:] = latent.data

assert np.array_equal(layer(x).data, y.data)
assert np.all(y.data % 2 == 0) and np.all(np.abs(layer.binary_weight()) == 1)

# %% [markdown]
# ## Latent weights and clipping
#
# Four latent weights, the gradient of each, and one step of gradient descent with rate 0.02:

# %%
before = np.array([0.97, -0.30, 0.05, 0.00])
gradient = np.array([-3.0, 1.0, 4.0, 2.0])
after = before - 0.02 * gradient
np.clip(after, -1, 1, out=after)  # in place: the layer keeps its array

flipped = (before >= 0) != (after >= 0)
print("before ", before)
print("after  ", after)
print("flipped", flipped, "-> flip ratio", flipped.mean())

assert np.allclose(after, [1, -0.32, -0.03, -0.04]) and flipped.mean() == 0.5

# %% [markdown]
# - The second weight moved but its sign did not: for the network, nothing has changed yet. In the
#   latent weights small steps add up until, now and then, a sign *flips*.
# - The third and the fourth flipped; the sign of 0 is $+1$. The *flip ratio*, here 2 of 4, says
#   how much the network is still changing.
# - The first would have become 1.03. Beyond 1 the estimator passes no gradient, so it could never
#   come back. This is why latent weights are *clipped* to $[-1, 1]$ after each step.
#
# ## Batch norm
#
# A sum of 128 signs is typically about $\sqrt{128} \approx 11$ in size. The estimator passes
# gradients only where $|x| \le 1$, so hardly any get through. And a unit with positive sums for all
# images answers $+1$ to everything, which carries no information. *Batch norm* solves both
# problems. It takes each unit's sums over the images of a batch, subtracts their mean and divides
# by their standard deviation; then it multiplies by $\gamma$ and adds $\beta$, two learned numbers
# for each unit. For one unit and four images:

# %%
sums = np.array([1.0, 2.0, 6.0, 3.0])
mean, var = sums.mean(), ((sums - sums.mean()) ** 2).mean()  # divided by N, not N - 1
normalized = (sums - mean) / np.sqrt(var + 1e-5)  # 1e-5: no division by 0
print(f"mean {mean}, variance {var}, normalized {normalized.round(2)}")

norm = nn.BatchNorm1d(1)
theirs = norm(tb.Tensor(sums[:, None].astype(np.float32))).data[:, 0]

assert np.allclose(theirs, normalized, atol=1e-5)
assert np.sign(normalized).tolist() == [-1, -1, 1, 0]

# %% [markdown]
# Mean and variance depend on the inputs, so the gradient goes through them, too. A single image is
# not a batch: training keeps a running average of both, which is used after training instead. Does
# batch norm matter? We look at layers of 128 units before training: what share of the sums lets a
# gradient through?

# %%
rng = np.random.default_rng(0)
h = tb.Tensor(flat)
for n in (64, 128, 128):
    raw = nn.BinaryLinear(n, 128, input_quantizer=None, rng=rng)(h)
    normed = nn.BatchNorm1d(128)(raw)
    shares = [np.mean(np.abs(a.data) <= 1) for a in (raw, normed)]
    print(f"without batch norm {shares[0]:.0%}, with batch norm {shares[1]:.0%}")
    h = sign(normed)

    assert shares[0] < 0.2 and shares[1] > 0.6

# %% [markdown]
# ## Cross entropy
#
# The last layer gives a score for each class. *Softmax* turns scores into probabilities, $p_c =
# e^{s_c} / \sum_j e^{s_j}$, and *cross entropy* is $-\log p$ of the right class: 0 if the network
# is certain and right, large if it is certain and wrong. For several images, take the mean. Here
# are three scores; the first class is the right one:

# %%
scores = np.array([2.0, 0.0, -1.0])
p = np.exp(scores) / np.exp(scores).sum()
print("probabilities", p.round(3), "cross entropy", -np.log(p[0]).round(3))

large = scores + 1000  # the same probabilities; but exp(1000) overflows
safe = np.log(np.exp(large - large.max()).sum()) - (large - large.max())[0]
rows = tb.Tensor([scores], requires_grad=True)
loss = F.cross_entropy(rows, np.array([0]))
loss.backward()
print("gradient     ", rows.grad.data[0].round(3))

assert np.isclose(safe, -np.log(p[0])) and np.isclose(loss.data, safe)
assert np.allclose(rows.grad.data[0], p - [1, 0, 0], atol=1e-6)

# %% [markdown]
# The trick in `safe` is this: the loss is $\log \sum_j e^{s_j} - s_\text{right}$, and subtracting
# the largest score from all of them changes no probability. In an engine without indexing,
# $s_\text{right}$ is a product with ones and zeros, summed up: `(scores * [1, 0, 0]).sum()`. The
# gradient is simple: $p_c$, minus 1 for the right class. Scores of wrong classes are pushed down,
# each by its probability.
#
# ## Adam
#
# Plain gradient descent moves a weight by rate times gradient. Weights move fast in layers with
# large gradients and hardly at all in others. *Adam* keeps two running averages for each weight, of
# the gradient, $m$, and of its square, $v$, and moves it by rate times $m / \sqrt{v}$: by about one
# *rate* in each step, whatever the gradient's size, and by less if its sign keeps changing. Three
# weights, with gradients of 100, of 1, and of 1 and -1 in turn:


# %%
def gradients(step):
    return np.float32([100, 1, (-1) ** step])


w, plain = tb.Tensor([0.5, 0.5, 0.5], requires_grad=True), np.full(3, 0.5)
adam = optim.Adam([w], lr=0.01)
for step in range(10):
    w.grad = None
    (w * gradients(step)).sum().backward()
    adam.step()
    plain -= 0.01 * gradients(step)
print("after ten steps of Adam:            ", w.data.round(3))
print("after ten steps of gradient descent:", plain.round(3))

assert np.allclose(w.data[:2], 0.4, atol=1e-4) and abs(w.data[2] - 0.5) < 0.02

# %% [markdown]
# This is what latent weights need: at a rate of 0.01, a weight at 0.4 flips after about 40 steps in
# the same direction, in every layer.
#
# ## The better version
#
# Now we put all of it together. The first layer takes the real pixels (its weights are signs, its
# input is not); the others take signs. The last batch norm turns integers into scores. A tenth of
# the training images is set aside as a *validation* set for making choices, so that the test set is
# used only once.

# %%
train, validation = train.split(0.1, rng=0)


def network(seed):
    rng = np.random.default_rng(seed)
    binary = {"input_quantizer": "ste_sign", "rng": rng}
    return nn.Sequential(
        nn.Flatten(),
        nn.BinaryLinear(64, 128, input_quantizer=None, rng=rng),
        nn.BatchNorm1d(128),
        nn.BinaryLinear(128, 128, **binary),
        nn.BatchNorm1d(128),
        nn.BinaryLinear(128, 10, **binary),
        nn.BatchNorm1d(10),
    )


def fit(model, seed, epochs=15):
    adam = optim.Adam(model.parameters(), lr=1e-2)
    return training.fit(
        model,
        datasets.DataLoader(train, batch_size=64, shuffle=True, rng=seed),
        epochs=epochs,
        optimizer=adam,
        schedule=optim.CosineAnnealingLR(adam, epochs),  # the rate falls to 0 along a cosine
        validation=datasets.DataLoader(validation, batch_size=256),
        progress=False,
    )


model = network(0)
history = fit(model, 0)
for row in history.rows[::2]:
    print(
        f"epoch {row['epoch']:2}: loss {row['loss']:.3f}, validation accuracy "
        f"{row['val_accuracy']:.1%}, flipped {row['flip_ratio']:.2%}"
    )

assert history["val_accuracy"][-1] > 0.9
assert history["flip_ratio"][-1] < history["flip_ratio"][0]

# %% [markdown]
# An *epoch* shows every training image once. `fit` computes the loss of a batch, calls `backward`,
# lets Adam step and clips the latent weights; you build each of these parts in the exercises. The
# flip ratio falls as the rate does: the network settles.
#
# ## The same numbers from bits
#
# Write $+1$ as bit 1 and $-1$ as bit 0. A product of two signs is $-1$ exactly where their bits
# differ, so ([00](00_bits_and_signs.ipynb)) $a \cdot b = K - 2\,\operatorname{popcount}(a \oplus
# b)$. With the eight signs of our layer by hand:


# %%
def to_integer(signs):
    """Bit i is 1 where element i is +1."""
    return sum(1 << i for i, s in enumerate(signs) if s > 0)


a, b = to_integer(sign(x).data[0]), to_integer(layer.binary_weight()[0])
print(f"{a:08b} xor {b:08b} = {a ^ b:08b}")
print("8 - 2 *", (a ^ b).bit_count(), "=", 8 - 2 * (a ^ b).bit_count())

assert 8 - 2 * (a ^ b).bit_count() == y.data[0, 0]

# %% [markdown]
# How a machine does this 64 signs at a time is the subject of [04](04_xnor_and_popcount.ipynb).
#
# ## Measured
#
# What do the signs cost? Five seeds of three networks with the same layers: the binary one; its
# *float twin*, trained inside `quantizers.surrogates()` ([02](02_the_gradient_of_sign.ipynb)),
# where each sign is replaced by its surrogate, the clipped line; and that twin with its weights and
# activations replaced by their signs after training, which is our naive version once more.


# %%
def accuracy(model):
    with tb.no_grad():
        return training.accuracy(model(tb.Tensor(x_test)).data, y_test)


found = {"binary": [], "float twin": [], "signs of the twin": []}
for seed in range(5):
    for kind in ("binary", "float twin"):
        floats = quantizers.surrogates() if kind == "float twin" else contextlib.nullcontext()
        with floats:
            trained = network(seed)
            fit(trained, seed)
            found[kind].append(accuracy(trained))
    found["signs of the twin"].append(accuracy(trained))
for kind, values in found.items():
    print(f"{kind:18} {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")

figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
for i, values in enumerate(found.values()):
    axes.plot(values, [i] * 5, "o", color=plots.MINUS, alpha=0.7)
    axes.plot([np.mean(values)] * 2, [i - 0.3, i + 0.3], color=plots.PLUS, linewidth=2.5)
axes.set_yticks(range(3), found)
axes.set(xlabel="test accuracy, five seeds (dots) and their mean", ylim=(2.5, -0.5))
plt.show()

assert np.mean(found["binary"]) > np.mean(found["float twin"]) - 0.05
assert np.mean(found["signs of the twin"]) < np.mean(found["binary"]) - 0.2

# %% [markdown]
# Trained with its signs, the binary network loses about three percentage points against floats.
# Rounded at the end, it loses ten times as much. (The validation accuracy was higher than all of
# these: the validation images are by the same writers as the training images, the test images by
# others.)
#
# ## In the package
#
# The layers are in [`nn/binary.py`](../tinybnn/nn/binary.py), the loop in
# [`training.py`](../tinybnn/training.py). `deploy.compile` rewrites a trained network for bits:
# weights are packed into words of 64 bits, and batch norm followed by sign becomes *one comparison
# of integers* ([06](06_compiling.ipynb) shows how). `deploy.verify` compares every value inside
# both networks with `==`.

# %%
packed = deploy.compile(model, x_test.shape[1:])
compared = deploy.verify(model, packed, x_test)
print(f"{compared:,} values compared, all equal")

with tb.no_grad():
    float_scores = model(tb.Tensor(x_test)).data
float_bytes = sum(array.nbytes for array in model.state_dict().values())
print(f"test accuracy {training.accuracy(packed.predict(x_test), y_test):.1%}")
print(f"{float_bytes:,} bytes as floats, {packed.nbytes:,} packed")

assert np.array_equal(packed.predict(x_test), float_scores)
assert packed.nbytes * 15 < float_bytes

# %% [markdown]
# ## Summary
#
# A binary network keeps a latent float for each weight and computes with its sign; steps add up in
# the latent weight until the sign flips. Clipping keeps latent weights where the straight-through
# estimator still reaches them, batch norm keeps sums there and on both sides of 0, and Adam moves
# all weights at the same pace. The signs must be present during training: here, rounding a trained
# network loses more than thirty percentage points, and training with signs about three. The trained
# network gives the same numbers on bits, in a fraction of the memory.
#
# ## Exercises
#
# The exercises build on your own `engine.py` and `estimators.py`.
#
# | | name | task |
# |---|---|---|
# | 03.1 | `binary_linear` | the product with the signs of latent weights |
# | 03.2 | `batch_norm` | mean 0 and variance 1 over the batch, gradient included |
# | 03.3 | `cross_entropy` | the loss, safe for scores of 1000 |
# | 03.4 | `clip_latents` | latent weights back to [-1, 1], in place |
# | 03.5 | `flip_ratio` | the share of signs that changed |
#
# Edit `mybnn/layers.py` beside this notebook (Adam is in it, complete), then run `tinybnn course
# check 03` in a terminal; `tinybnn course hint 03.2` gives a hint. The next cell shows how far you
# are.

# %%
from tinybnn import course  # noqa: E402

course.show("03")

# %% [markdown]
# Think about:
#
# 1. Take the first two batch norms out of `network` and train again. What happens to the accuracy,
#    and which section explains it?
# 2. Suppose that all latent weights of a layer are multiplied by 10, and so is Adam's rate. What
#    would change in the training if nothing were clipped?
# 3. Which numbers of the packed network are still floats?
#
# ## Sources
#
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016): binary weights and activations, latent weights and their clipping.
# - S. Ioffe, C. Szegedy: *Batch Normalization* (2015).
# - D. Kingma, J. Ba: *Adam: A Method for Stochastic Optimization* (2015).
# - M. Rastegari et al.: *XNOR-Net* (2016): products by XNOR and popcount.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
