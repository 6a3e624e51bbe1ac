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
# # A binary autoencoder
#
# **You will learn** what an autoencoder does whose latent space is nothing but bits, why its loss
# is a bound of a probability, and how codes make search cheap.
#
# **You need** estimators of a drawn bit's gradient and the KL divergence
# ([07](07_binary_latents.ipynb)), convolutions ([05](05_convolutions_on_bits.ipynb)), and batch
# norm and Adam ([03](03_first_binary_network.ipynb)).
#
# **Time** 8 minutes of reading, under a minute of running on two cores.

# %%
import math
import time

import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import datasets, optim, plots
from tinybnn import functional as F
from tinybnn.experiments.hybnn.codes import flip_path, nearest, statistics
from tinybnn.kernels.bits import pack
from tinybnn.models import BinaryVAE, latents

# %% [markdown]
# ## The question
#
# A digit of 8×8 pixels with 17 grey levels takes 64 bytes. How much of it survives in 64 *bits*, if
# a network without labels chooses them?

# %%
train, test = datasets.load("digits")
images = train.images / np.float32(train.maximum)  # (N, 1, 8, 8), 0 to 1
test_images = test.images / np.float32(test.maximum)

assert images.shape == (1437, 1, 8, 8) and images.max() == 1

# %% [markdown]
# ## The naive version
#
# One bit a pixel: is it at least 0.5? The best picture that such a bit allows is the mean grey of
# the training pixels with the same bit. As a price, take the cross entropy in *nats*, summed over
# the pixels: $-x \ln y - (1 - x) \ln(1 - y)$ for grey $x$ and prediction $y$.


# %%
def nats(x, y):
    """Cross entropy of images x given predictions y, both (N, 1, 8, 8): the mean over images."""
    y = np.clip(y, 1e-3, 1 - 1e-3)
    return float(-(x * np.log(y) + (1 - x) * np.log(1 - y)).sum(axis=(1, 2, 3)).mean())


on = images >= 0.5
greys = [np.where(bits, images, 0).sum(0) / np.maximum(bits.sum(0), 1) for bits in (~on, on)]
restored = np.where(test_images >= 0.5, greys[1], greys[0])
one_bit_a_pixel = nats(test_images, restored)
print(f"one bit a pixel: {one_bit_a_pixel:.2f} nats; perfect would be "
      f"{nats(test_images, test_images):.2f}")  # fmt: skip

assert nats(test_images, test_images) < one_bit_a_pixel

# %% [markdown]
# An *autoencoder* learns the bits instead: an *encoder* turns the image into logits, bits are drawn
# from them, and a *decoder* turns bits into pixels. Both are trained together to restore the image.
#
# ## A check: the bound
#
# Training a variational autoencoder lowers minus the *evidence lower bound*,
#
# $$-\mathrm{ELBO}(x) = \underbrace{\mathrm{E}_{q}[-\log p(x \mid z)]}_{\text{reconstruction}} +
# \underbrace{\mathrm{KL}(q \,\|\, p)}_{\text{rate}} \;\ge\; -\log p(x).$$
#
# The rate counts what the code costs under the prior, where all $2^{\text{bits}}$ codes are equally
# likely. For independent bits it has a formula. With 6 bits both sides can be computed, for a small
# autoencoder after some training:

# %%
rng = np.random.default_rng(0)
small = BinaryVAE(
    (1, 8, 8), 6, "straight_through", encoder="dense", latent_norm=False, hidden=(24,), rng=rng
)
optimizer = optim.Adam(small.parameters(), lr=5e-3)
for _ in range(300):
    optimizer.zero_grad()
    small.loss(images[rng.integers(0, len(images), 64)], rng).total.mean().backward()
    optimizer.step()
small = small.to(np.float64).eval()
x = images[:3].astype(np.float64)
logits = small.encoder.logits(tb.Tensor(x)).data


def reconstruction(codes):
    """Codes (M, 6) -> the cross entropy of the three images given them, (M,) nats."""
    return small.reconstruction(codes, x)


rate = small.estimator.rate(tb.Tensor(logits)).data
elbo = small.exact_elbo(x).data
codes = latents.Enumeration.codes(6, np.float64)  # (64, 6)
q = np.exp(latents.StraightThrough().log_prob(tb.Tensor(logits), codes[:, None]).data)  # (64, 3)
costs = np.stack([reconstruction(tb.Tensor(np.repeat(c[None], 3, 0))).data for c in codes])
by_hand = (q * costs).sum(0) + (q * (np.log(q) + 6 * math.log(2))).sum(0)
log_p = F.logsumexp(-costs, 0) - 6 * math.log(2)

print("rate, nats      ", rate.round(3), " of at most", round(6 * math.log(2), 3))
print("-ELBO           ", (-elbo).round(3))
print("-log p(x)       ", (-log_p).round(3))

np.testing.assert_allclose(-elbo, by_hand, rtol=1e-10)
assert np.all(elbo < log_p)

# %% [markdown]
# Several codes, weighted together, close the gap between the two: `bound` with $m$ samples rises
# with $m$ to $\log p(x)$.

# %%
for m in (1, 10, 1000):
    bounds = np.mean([small.bound(x, m, rng) for _ in range(max(1, 1000 // m))], axis=0)
    print(f"m = {m:4}: minus the bound {(-bounds).round(3)}")

np.testing.assert_allclose(bounds, log_p, rtol=0.02)

# %% [markdown]
# ## The better version: a code of 64 bits
#
# Now the autoencoder that HyBNN ([08](08_hybnn.ipynb)) uses: convolutions, a batch norm in front of
# the code, and `Sign` as the estimator. There is no noise, so $q$ is a single code and the rate is
# always $64 \ln 2$: it teaches nothing, and the model is trained on reconstruction alone.
# Labels are not used.

# %%
rng = np.random.default_rng(0)
vae = BinaryVAE((1, 8, 8), 64, "sign", rng=rng)
loader = datasets.DataLoader(
    train,
    batch_size=64,
    shuffle=True,
    drop_last=True,
    transform=datasets.to_unit(train.maximum),
    rng=rng,
)
epochs = 12
optimizer = optim.Adam(vae.parameters(), lr=2e-3)
schedule = optim.CosineAnnealingLR(optimizer, epochs * len(loader))
errors = []
for epoch in range(epochs):
    for batch, _ in loader:
        optimizer.zero_grad()
        loss = vae.loss(batch, rng)
        loss.total.mean().backward()
        optimizer.step()
        schedule.step()
        errors.append(loss.reconstruction.data.mean())
    if epoch % 3 == 2:
        print(f"epoch {epoch + 1:2}: reconstruction {np.mean(errors[-len(loader) :]):.2f} nats")
vae.eval()

assert np.allclose(loss.rate.data, 64 * math.log(2))
assert np.mean(errors[-len(loader) :]) < np.mean(errors[: len(loader)]) - 10

# %%
shown = test.images[:12] / np.float32(test.maximum)
codes = vae.encode(shown)  # (12, 64) of ±1
figure, axes = plt.subplots(figsize=(9, 1.9))
plots.images(
    [*shown, *vae.decode(codes)], 12, "test images, and what 64 bits keep of them", ax=axes
)
plt.show()
figure, axes = plt.subplots(figsize=(9, 1.8))
plots.signs(codes, "the codes of these images, one row each", ax=axes)
plt.show()

# %% [markdown]
# A good code uses its bits: each about half of the time +1, and no two the same.

# %%
words = vae.encode_packed(images)  # (1437, 1) uint64: a code is one machine word
used = statistics(words, 64)
print(f"{used['used']} of 64 bits vary, entropy of a bit {used['entropy']:.3f} of 1")
print(f"mean |correlation| of two bits {used['mean_correlation']:.3f}")
print(f"{used['distinct']:,} different codes for {len(images):,} images")

assert used["used"] == 64 and used["entropy"] > 0.9

# %% [markdown]
# Codes from the prior are coins tossed 64 times; few of them are the code of any digit. From one
# digit to another one can walk by flipping the bits that differ, one after the other.

# %%
figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 2.2))
plots.images(vae.sample(12, rng), 12, "codes drawn from the prior", ax=top)
path = flip_path(codes[1], codes[5], 12, rng)
plots.images(vae.decode(path), 12, "from one code to another, bit by bit", ax=bottom)
figure.tight_layout()
plt.show()

assert np.array_equal(path[-1], codes[5])

# %% [markdown]
# ## Measured
#
# The question was how much of an image survives. On the test images, in the price of the naive
# version:

# %%
learned = nats(test_images, vae.decode(vae.encode(test_images)))
print(f"one bit a pixel {one_bit_a_pixel:.2f} nats, 64 learned bits {learned:.2f} nats")

assert learned < one_bit_a_pixel

# %% [markdown]
# Codes also make search cheap. Two images are alike if few of their bits differ, and the number of
# bits that differ is `popcount(a ^ b)`. The XNOR product of [04](04_xnor_and_popcount.ipynb), which
# is $64 - 2\,\text{distance}$, finds the nearest of all training images.

# %%
queries = vae.encode_packed(test.images / np.float32(test.maximum))
nearest(queries[:1], words, 64)  # compiles the kernel
start = time.perf_counter()
rows, distances = nearest(queries, words, 64)
seconds = time.perf_counter() - start
right = train.labels[rows[:, 0]] == test.labels
print(f"{len(queries) * len(words):,} distances in {seconds * 1e3:.1f} ms")
print(f"the nearest image has the right label: {right.mean():.1%}")

a, b = codes[0], vae.encode(images[rows[0]])[0]
assert distances[0, 0] == np.count_nonzero(a != b)
assert distances[0, 0] == (int(pack(a)[0]) ^ int(pack(b)[0])).bit_count()
assert right.mean() > 0.8

# %%
rows, distances = nearest(queries[:4], words, 64, 9)
pictures, labels = [], []
for i in range(4):
    pictures += [test.images[i], *train.images[rows[i]]]
    labels += ["query", *map(str, distances[i])]
figure, axes = plt.subplots(figsize=(8, 4))
plots.images(
    np.array(pictures) / train.maximum,
    10,
    "nearest training images, and how many of 64 bits differ",
    labels,
    ax=axes,
)
plt.show()

# %% [markdown]
# ## In the package
#
# The autoencoder is [`models/binary_vae.py`](../tinybnn/models/binary_vae.py), and `nearest` is in
# [`experiments/hybnn/codes.py`](../tinybnn/experiments/hybnn/codes.py). Packed codes are the signs
# of the encoder's logits, no more:

# %%
with tb.no_grad():
    signs = np.where(vae.encoder.logits(tb.Tensor(test_images)).data >= 0, 1, -1)

assert np.array_equal(pack(signs.astype(np.float32)), queries)

# %% [markdown]
# ## Summary
#
# A variational autoencoder lowers a bound: the price of restoring the image plus the price of its
# code. For few bits both sides of the bound can be computed, and several codes close the gap. With
# `Sign` as estimator there is no noise and the code's price is constant. The 64 bits that it learns
# all vary and restore more than one bit a pixel does. The nearest code by XOR and popcount mostly
# belongs to the same digit, though no label was seen.
#
# ## Exercises
#
# The exercises that check themselves are those of [07](07_binary_latents.ipynb); what a binary
# network does with such codes is told in [08](08_hybnn.ipynb). Think about:
#
# 1. Train with `BinaryVAE((1, 8, 8), 64, "gumbel_softmax")` and a `latents.TemperatureSchedule`.
#    What happens to the rate, and to the samples from the prior? *Hint:* the rate now has a
#    gradient.
# 2. Why are most codes from the prior no digit? *Hint:* count the codes in use.
#
# ## Sources
#
# - D. Kingma, M. Welling: *Auto-Encoding Variational Bayes* (2014), arXiv:1312.6114: the bound.
# - Y. Burda, R. Grosse, R. Salakhutdinov: *Importance Weighted Autoencoders* (2016): the bound of
#   several codes.
# - J. Fajtl et al.: *Latent Bernoulli Autoencoder* (2020): the autoencoder with a sign.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
