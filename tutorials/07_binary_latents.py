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
# # Binary latent variables
#
# **You will learn** why a sampled bit has no gradient, six ways to estimate one all the same, how
# to tell a biased estimator from a noisy one by comparing it with a sum over all codes, and what an
# autoencoder does whose latent space is nothing but bits.
#
# **You need** [02](02_the_gradient_of_sign.ipynb) (the straight-through estimator) and an idea of
# what an expectation is. Reading takes about twenty minutes, running under a minute on two CPU
# cores.

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
# ## 1. One bit
#
# A *latent bit* $z$ is drawn at random: $+1$ with probability $\sigma(l)$, else $-1$. The number
# $l$ is its *logit*, which a network computes. Some cost depends on the bit, and training is to
# lower the mean cost:
#
# $$C(l) = \sigma(l)\,c(+1) + \sigma(-l)\,c(-1), \qquad
#   C'(l) = \sigma(l)\,\sigma(-l)\,\bigl(c(+1) - c(-1)\bigr).$$
#
# For one bit this is no problem at all. Two terms, and autograd does the rest:


# %%
def cost(z):
    """Any function of codes (M, bits) -> (M,); this one is not linear."""
    return F.sum((z - 0.4) ** 4, 1)


logit = tb.Tensor([[0.7]], requires_grad=True)
p = F.sigmoid(logit)
mean_cost = (p * cost(tb.Tensor([[1.0]])) + (1.0 - p) * cost(tb.Tensor([[-1.0]]))).sum()
mean_cost.backward()

s = 1 / (1 + math.exp(-0.7))
exact = s * (1 - s) * (0.6**4 - 1.4**4)
print(f"autograd {logit.grad.data.item():.4f}, formula {exact:.4f}")

assert math.isclose(logit.grad.data.item(), exact, rel_tol=1e-5)

# %% [markdown]
# For 200 bits the sum has $2^{200}$ terms. It has to be sampled: draw a code, compute its cost. And
# here the trouble begins. With noise $e$ from the logistic distribution, $z = \operatorname{sign}(l
# + e)$ is such a draw, and a small change of $l$ changes nothing but, rarely, everything:

# %%
noise = np.random.default_rng(0).logistic(size=100_000)
logits = np.linspace(-3, 3, 121)
shares = [(logit + noise >= 0).mean() for logit in logits]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6))
for e, (_, color, _) in zip(noise[:3], plots.marks(), strict=False):
    left.step(logits, np.where(logits + e >= 0, 1, -1), where="mid", color=color)
left.set(xlabel="logit", title="sign(l + e) for three draws of e", yticks=[-1, 1])
right.plot(logits, shares, color=plots.MINUS, label="share of +1 in 100,000 draws")
right.plot(logits, 1 / (1 + np.exp(-logits)), "--", color=plots.PLUS, label="σ(l)")
right.set(xlabel="logit")
plots.legend_beside(right)
plt.show()

assert np.abs(np.array(shares) - 1 / (1 + np.exp(-logits))).max() < 0.01

# %% [markdown]
# The mean is smooth, each draw is a step. Every method below is a way to recover the slope of the
# right picture from the left one.
#
# ## 2. Two families of estimators
#
# **Through the code.** Pretend that the code had a derivative.
#
# - `Sign`: no noise, $z = \operatorname{sign}(l)$, and the straight-through gradient of tutorial
#   03.
# - `StraightThrough`: a drawn code, with the derivative of its mean $2\sigma(l) - 1$.
# - `GumbelSoftmax`: the sign is replaced by $\tanh((l + e)/2\tau)$, a soft step with an honest
#   derivative, but the code is no longer ±1.
# - `StraightThroughGumbel`: forward the hard step, backward the derivative of the soft one.
#
# **Around the code.** $\partial C/\partial l$ is itself an expectation, one that needs costs of
# codes only, and no derivative of the cost:
#
# $$\frac{\partial C}{\partial l} = \mathrm{E}\Bigl[c(z)\,\frac{\partial \log q(z)}{\partial
# l}\Bigr].$$
#
# - `ScoreFunction` averages this over several codes, and takes from each cost the mean of the
#   others.
# - `DisARM` draws codes in pairs with mirrored noise; bits that agree in both cancel out.
#
# All have one method, `expectation`: a cost with a gradient.

# %%
logit = tb.Tensor([[0.7]], requires_grad=True)
rng = np.random.default_rng(1)
for name in ("straight_through", "gumbel_softmax", "score_function", "disarm"):
    logit.grad = None
    value = latents.get(name).expectation(logit, cost, rng).sum()
    value.backward()
    print(f"{name:<18} cost {value.item():7.4f}   gradient {logit.grad.data.item():8.4f}")
print(f"{'exact':<18} cost {mean_cost.item():7.4f}   gradient {exact:8.4f}")

# %% [markdown]
# A single estimate says little. What counts is the mean of many (is it right?) and their spread
# (how long must one wait for it?).
#
# ## 3. Against the truth
#
# With few bits, the sum over all codes can be done: `Enumeration` does it. That gives a measure for
# the others. The model is a small autoencoder of digits with 6 bits, in double precision; the cost
# is the reconstruction error of its decoder.

# %%
train, test = datasets.load("digits")
images = train.images / np.float32(train.maximum)  # (N, 1, 8, 8), 0 to 1

rng = np.random.default_rng(0)
small = BinaryVAE(
    (1, 8, 8), 6, "straight_through", encoder="dense", latent_norm=False, hidden=(24,), rng=rng
)
optimizer = optim.Adam(small.parameters(), lr=5e-3)
for _ in range(300):  # some training, so that the bits matter
    optimizer.zero_grad()
    batch = images[rng.integers(0, len(images), 64)]
    small.loss(batch, rng).total.mean().backward()
    optimizer.step()
small = small.to(np.float64).eval()

x = images[:3].astype(np.float64)
logits = small.encoder.logits(tb.Tensor(x)).data


def reconstruction(codes):
    """Codes (M, 6) -> the cross entropy of the three images given them, (M,) nats."""
    return small.reconstruction(codes, x)


names = [
    "sign",
    "straight_through",
    "straight_through_gumbel",
    "gumbel_softmax",
    "score_function",
    "disarm",
]
found = {
    name: latents.compare_gradients(name, logits, reconstruction, samples=600, rng=rng)
    for name in names
}

# %% [markdown]
# For each estimator: the length of its bias as a share of the exact gradient's length, the same for
# the standard error of the mean of these 600 estimates (a bias below it may be chance), and for the
# spread of a single estimate. The last column is the largest deviation of a logit's gradient in
# units of its standard error, $|z|$. For an unbiased estimator $z$ is about normal: among 18
# logits, a value beyond 4.5 would be a rare accident. `Sign` draws nothing, so all of its deviation
# is bias.

# %%
exact_gradient = found["sign"].exact[0]
length = np.linalg.norm(exact_gradient)
print(f"{'estimator':<26}{'bias':>8}{'error':>8}{'spread':>9}{'largest |z|':>13}")
for name, comparison in found.items():
    bias = np.linalg.norm(comparison.bias[0]) / length
    error = np.linalg.norm(comparison.standard_error[0]) / length
    z = f"{np.abs(comparison.z[0]).max():13.1f}" if latents.get(name).is_random else ""
    print(f"{name:<26}{bias:8.1%}{error:8.1%}{error * math.sqrt(600):9.1%}{z}")

for name, comparison in found.items():
    assert latents.get(name).is_unbiased == (np.abs(comparison.z[0]).max() < 4.5)

# %% [markdown]
# The two families have opposite faults. Those that go through the code are quiet and wrong; those
# that go around it are right and loud. Which fault hurts more depends on the number of bits, and on
# how long one can train: `tinybnn reproduce hybnn-bounds` runs that comparison for 200 bits.
#
# ## 4. The temperature
#
# Gumbel-softmax has a knob between the two faults. A low temperature $\tau$ makes the soft step
# nearly hard: less bias, more spread.

# %%
temperatures = [0.1, 0.2, 0.5, 1.0, 2.0]
rows = []
for temperature in temperatures:
    comparison = latents.compare_gradients(
        latents.GumbelSoftmax(temperature), logits, reconstruction, samples=600, rng=rng
    )
    rows.append(
        [
            np.linalg.norm(comparison.bias[0]) / length,
            np.linalg.norm(comparison.standard_error[0]) * math.sqrt(600) / length,
        ]
    )
bias, spread = np.transpose(rows)

figure, axes = plt.subplots(figsize=(5, 2.8))
axes.loglog(temperatures, bias, "o-", color=plots.MINUS, label="bias of the mean")
axes.loglog(temperatures, spread / math.sqrt(600), ":", color="0.4", label="its standard error")
axes.loglog(temperatures, spread, "s-", color=plots.PLUS, label="spread of one estimate")
axes.set(xlabel="temperature τ", ylabel="share of the exact gradient")
plots.legend_beside(axes)
plt.show()

assert spread[0] > 2 * spread[-1] and bias[-1] > 2 * bias[1]

# %% [markdown]
# On the left what is measured as bias is no more than the standard error of 600 estimates: the
# noise hides it. That is why a `TemperatureSchedule` starts warm, where a few estimates tell the
# direction, and cools down in the course of training.
#
# ## 5. The bound
#
# Training a variational autoencoder lowers minus the *evidence lower bound*,
#
# $$-\mathrm{ELBO}(x) = \underbrace{\mathrm{E}_{q}[-\log p(x \mid z)]}_{\text{reconstruction}} +
# \underbrace{\mathrm{KL}(q \,\|\, p)}_{\text{rate}} \;\ge\; -\log p(x).$$
#
# The rate counts what the code costs under the prior, where all $2^{\text{bits}}$ codes are equally
# likely. For independent bits it has a formula. With 6 bits both sides can be computed:

# %%
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
# ## 6. A code of 64 bits
#
# Now the autoencoder that HyBNN uses: convolutions, a batch norm in front of the code, and
# `Sign` as the estimator. There is no noise, so $q$ is a single code and the rate is always
# $64 \ln 2$: it teaches nothing, and the model is an autoencoder, trained on reconstruction alone.
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
# ## 7. Neighbours
#
# Codes make search cheap. Two images are alike if few of their bits differ, and the number of bits
# that differ is `popcount(a ^ b)`: the XNOR product of tutorial 04, $64 - 2\,\text{distance}$,
# finds the nearest of all training images.

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
# Nothing in here has seen a label. What a binary network does with such codes is told in tutorial
# 08.
#
# ## Exercises
#
# 1. Make the cost of section 1 linear in the code. Which biased estimators become unbiased, and
#    why?
# 2. Compare `ScoreFunction(2)` with `ScoreFunction(8)` by `compare_gradients`. Eight codes cost
#    four times as much as two: is the spread of one estimate less than half, and so the work well
#    spent?
# 3. Train the model of section 6 with `"gumbel_softmax"` and a `TemperatureSchedule`. What happens
#    to the rate, and what to the samples from the prior? The first lines are given.

# %%
noisy = BinaryVAE((1, 8, 8), 64, "gumbel_softmax", rng=np.random.default_rng(0))
cooling = latents.TemperatureSchedule(noisy.estimator, T_max=epochs * len(loader))
print(noisy.estimator, "rate", noisy.loss(shown, rng).rate.data.mean().round(2), "nats")

# %% [markdown]
# ## Sources
#
# - Y. Bengio, N. Léonard, A. Courville: *Estimating or Propagating Gradients Through Stochastic
#   Neurons* (2013): straight-through.
# - E. Jang, S. Gu, B. Poole: *Categorical Reparameterization with Gumbel-Softmax* (2017); C.
#   Maddison, A. Mnih, Y. W. Teh: *The Concrete Distribution* (2017).
# - R. Williams: *Simple Statistical Gradient-Following Algorithms* (1992): the score function; W.
#   Kool et al.: *Buy 4 REINFORCE Samples, Get a Baseline for Free!* (2019): leave-one-out
#   baselines.
# - Z. Dong, A. Mnih, G. Tucker: *DisARM* (2020).
# - Y. Burda, R. Grosse, R. Salakhutdinov: *Importance Weighted Autoencoders* (2016): the bound of
#   several codes.
# - J. Fajtl et al.: *Latent Bernoulli Autoencoder* (2020): the autoencoder with a sign.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
