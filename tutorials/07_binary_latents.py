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
# **You will learn** why a bit that is drawn at random has no gradient, two kinds of estimators of
# it, one biased and one noisy, how both are compared with a sum over all codes, and what a code
# costs.
#
# **You need** the straight-through estimator ([02](02_the_gradient_of_sign.ipynb)), Tensors and
# their gradients ([01](01_autograd_from_scratch.ipynb)), and cross entropy
# ([03](03_first_binary_network.ipynb)). The *expectation* of a quantity is its mean over many
# draws: the sum over all outcomes of probability times value.
#
# **Time** 11 minutes of reading, under a minute of running on two cores.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import datasets, optim, plots
from tinybnn import functional as F
from tinybnn.models import BinaryVAE, latents

# %% [markdown]
# ## The question
#
# A *latent bit* $z$ is drawn at random: $+1$ with probability $p = \sigma(l) = 1 / (1 + e^{-l})$,
# else $-1$. The number $l$ is its *logit*, which a network computes. To draw it, take a random
# number $u$ between 0 and 1, all equally likely, and compare: $u < p$ happens with probability $p$.

# %%
p = np.array([0.0, 0.25, 0.75, 1.0])
u = np.array([0.0, 0.60, 0.60, 0.99])
print("bits", np.where(u < p, 1, -1))

assert np.where(u < p, 1, -1).tolist() == [-1, -1, 1, 1]

# %% [markdown]
# Probability 0 gives $-1$ always, also for $u = 0$, and probability 1 gives $+1$ always. Some
# *cost* $c(z)$ depends on the bits; here it is $(z - 0.4)^4$, summed over them. How must the logit
# 0.7 change so that the *expected* cost falls?
#
# ## The naive version
#
# Draw, and differentiate. With fixed $u$ the bit is a step function of its logit, so a small
# change of $l$ changes nothing or, rarely, everything. Its mean over many $u$ is smooth:

# %%
uniform = np.random.default_rng(0).random(100_000)
logits = np.linspace(-3, 3, 121)
p = 1 / (1 + np.exp(-logits))
shares = np.array([(uniform < one).mean() for one in p])

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6))
for one, (_, color, _) in zip(uniform[:3], plots.marks(), strict=False):
    left.step(logits, np.where(one < p, 1, -1), where="mid", color=color, label=f"u = {one:.2f}")
left.set(xlabel="logit", title="the bit for three draws of u", yticks=[-1, 1])
left.legend()
right.plot(logits, shares, color=plots.MINUS, label="share of +1 in 100,000 draws")
right.plot(logits, p, "--", color=plots.PLUS, label="σ(l)")
right.set(xlabel="logit", title="the mean over many draws")
plots.legend_beside(right)
plt.show()

assert np.abs(shares - p).max() < 0.01

# %% [markdown]
# The slope of each step is 0 almost everywhere. All methods below recover the slope of the right
# picture from draws of the left one.
#
# ## A check: all codes
#
# For few bits nothing need be drawn. A *code* is a row of bits, and $b$ bits have $2^b$ codes. With
# $q(z)$, the probability of a code (the product of its bits' probabilities), the expected cost is
# the sum of $q(z)\,c(z)$ over all codes. The cost of a code does not depend on the logits, its
# probability does, and $\nabla q = q\, \nabla \ln q$:
#
# $$\frac{\partial}{\partial l_i} \sum_z q(z)\, c(z) = \sum_z q(z)\, c(z)\,
#   \frac{\partial \ln q(z)}{\partial l_i}, \qquad
#   \frac{\partial \ln q(z)}{\partial l_i} = \frac{z_i - \mathrm{E}[z_i]}{2}, \quad
#   \mathrm{E}[z_i] = 2\sigma(l_i) - 1.$$
#
# The last fraction: a bit $+1$ has $\ln \sigma(l)$, with the slope $1 - p$; a bit $-1$ has
# $\ln(1 - p)$, with the slope $-p$. Both are $(z - (2p - 1))/2$. For one bit the sum becomes
# $p\,(1 - p)\,(c(+1) - c(-1))$.


# %%
def cost(z):
    """Any function of codes (M, bits) -> (M,), for arrays and Tensors."""
    return F.sum((z - 0.4) ** 4, 1)


def expected(logit):
    p = 1 / (1 + math.exp(-logit))
    return p * 0.6**4 + (1 - p) * 1.4**4


p = 1 / (1 + math.exp(-0.7))
codes, q = np.array([[1.0], [-1.0]]), np.array([p, 1 - p])
exact = (q * cost(codes)) @ (codes - (2 * p - 1)) / 2
by_differences = (expected(0.7 + 1e-5) - expected(0.7 - 1e-5)) / 2e-5
print(f"sum {exact[0]:.4f}, formula {p * (1 - p) * (0.6**4 - 1.4**4):.4f}, "
      f"differences {by_differences:.4f}")  # fmt: skip

assert np.isclose(exact[0], by_differences) and exact[0] < 0

# %% [markdown]
# The cost falls where the logit rises. For 200 bits the sum has $2^{200}$ terms: it has to be
# estimated from a few drawn codes.
#
# ## Around the code
#
# In the sum above each code counts $q(z)$ times. Drawn codes come as often as they are likely, so
# the mean of
#
# $$\bigl(c(z) - b\bigr)\, \frac{z - \mathrm{E}[z]}{2}$$
#
# over drawn codes is right on average: the *score-function* estimator, or REINFORCE. It needs the
# cost's values only. The *baseline* $b$, any number that does not depend on the code, changes no
# average, since $z - \mathrm{E}[z]$ has the mean 0; but it changes the spread:

# %%
rng = np.random.default_rng(1)
drawn = np.where(rng.random((10_000, 1)) < p, 1.0, -1.0)
for name, baseline in (("no baseline", 0.0), ("mean cost", expected(0.7))):
    estimates = (cost(drawn) - baseline)[:, None] * (drawn - (2 * p - 1)) / 2
    print(f"{name:<12} mean {estimates.mean():.3f}, spread {estimates.std():.3f}")

    assert abs(estimates.mean() - exact[0]) < 4 * estimates.std() / 100

# %% [markdown]
# An estimator is *unbiased* if its mean is right, as here. The spread (standard deviation) of a
# single estimate says how many of them one must wait for.
#
# ## Through the code
#
# The other kind pretends that the bit had a derivative. *Straight-through* draws the bit and takes
# the slope of its mean, $2p(1 - p)$, times the slope of the cost at the drawn bit. For our cost:


# %%
def straight_through(cost_slope):
    """Its mean over both bits, weighted with their probabilities: no draws needed."""
    return sum(w * 2 * p * (1 - p) * cost_slope(z) for z, w in ((1.0, p), (-1.0, 1 - p)))


quartic = straight_through(lambda z: 4 * (z - 0.4) ** 3)
linear = straight_through(lambda z: 3.0)
print(f"(z - 0.4)**4: straight-through {quartic:.3f}, exact {exact[0]:.3f}")
print(f"3 z         : straight-through {linear:.3f}, exact {p * (1 - p) * 6:.3f}")

assert quartic < 1.2 * exact[0] and np.isclose(linear, p * (1 - p) * 6)

# %% [markdown]
# It is *biased*: no number of draws brings it to the exact gradient, unless the cost is linear,
# where its slope at a bit is half the difference $c(+1) - c(-1)$. But each estimate uses the slope
# of the cost in every single bit, so its spread is lower. The package has more of both kinds:
#
# - `Sign` draws nothing: $z = \operatorname{sign}(l)$, with the gradient of
#   [02](02_the_gradient_of_sign.ipynb);
# - `GumbelSoftmax` replaces the step by $\tanh((l + e) / 2\tau)$ with random $e$: a soft step with
#   an honest derivative, but the code is no longer ±1. The *temperature* $\tau$ makes it steep.
#   `StraightThroughGumbel` computes with the step and takes this derivative;
# - `ScoreFunction` draws several codes; the baseline of each is the mean cost of the others;
# - `DisARM` draws codes in pairs with mirrored noise. What both share cancels out.
#
# ## Measured
#
# A small autoencoder of digits (its parts are explained in [07b](07b_a_binary_autoencoder.ipynb))
# has 6 bits between its halves. After some training, the cost is how badly the decoder restores an
# image from a code. For three images, 18 logits, `compare_gradients` sets 600 estimates of each
# kind against the sum over all 64 codes.

# %%
train, _ = datasets.load("digits")
images = train.images / np.float32(train.maximum)  # (N, 1, 8, 8), 0 to 1

rng = np.random.default_rng(0)
small = BinaryVAE(
    (1, 8, 8), 6, "straight_through", encoder="dense", latent_norm=False, hidden=(24,), rng=rng
)
optimizer = optim.Adam(small.parameters(), lr=5e-3)
for _ in range(300):
    optimizer.zero_grad()
    batch = images[rng.integers(0, len(images), 64)]
    small.loss(batch, rng).total.mean().backward()
    optimizer.step()
small = small.to(np.float64).eval()

x = images[:3].astype(np.float64)
logits = small.encoder.logits(tb.Tensor(x)).data


def reconstruction(codes):
    """Codes (M, 6) -> the cross entropy of the three images given them, (M,)."""
    return small.reconstruction(codes, x)


names = [
    "sign", "straight_through", "straight_through_gumbel", "gumbel_softmax", "score_function",
    "disarm",
]  # fmt: skip
found = {
    name: latents.compare_gradients(name, logits, reconstruction, samples=600, rng=rng)
    for name in names
}
length = np.linalg.norm(found["sign"].exact[0])
print(f"{'estimator':<26}{'bias':>8}{'error':>8}{'spread':>9}{'largest |z|':>13}")
for name, comparison in found.items():
    bias = np.linalg.norm(comparison.bias[0]) / length
    error = np.linalg.norm(comparison.standard_error[0]) / length
    z = f"{np.abs(comparison.z[0]).max():13.1f}" if latents.get(name).is_random else ""
    print(f"{name:<26}{bias:8.1%}{error:8.1%}{error * math.sqrt(600):9.1%}{z}")

for name, comparison in found.items():
    assert latents.get(name).is_unbiased == (np.abs(comparison.z[0]).max() < 4.5)

# %% [markdown]
# All are shares of the exact gradient's length: the bias, the *standard error* of the mean of 600
# estimates (a bias below it may be chance), and the spread of a single one. $|z|$ is the largest
# deviation in units of its standard error; for an unbiased estimator a value beyond 4.5 would be a
# rare accident. `Sign` draws nothing, so all of its deviation is bias.
#
# The two kinds have opposite faults: through the code, quiet and wrong; around it, right and loud.
#
# ## The price of a code
#
# A bit that is always $+1$ says nothing about the image, and a code should not cost more than it
# says. The *KL divergence* measures how far a bit is from a fair coin, in *nats* (with $\ln$; with
# $\log_2$ it would be bits):
#
# $$\mathrm{KL} = p \ln(2p) + (1 - p) \ln(2(1 - p)),$$
#
# 0 for a coin, $\ln 2 = 0.693$ nats for a certain bit. At $p = 1$ the second term is $0 \cdot
# \ln 0$, which has the limit 0, and NaN in floats. With $e = e^{-|l|}$, never above 1, the likelier
# value has $\ln p = -\ln(1 + e)$ and the other one $\ln(1 - p) = -|l| - \ln(1 + e)$. So no
# logarithm gets 0:

# %%
logit = np.array([0.0, 1.0, 5.0, 40.0, 1000.0])
with np.errstate(all="ignore"):
    p = 1 / (1 + np.exp(-logit))
    naive = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
e = np.exp(-logit)
stable = math.log(2) - np.log1p(e) - logit * e / (1 + e)
print("naive ", naive.round(4))
print("stable", stable.round(4))

assert np.isnan(naive[-1]) and np.isfinite(stable).all()
assert np.allclose(naive[:3], stable[:3]) and np.isclose(stable[-1], math.log(2))

# %% [markdown]
# ## In the package
#
# The estimators are in [`models/latents.py`](../tinybnn/models/latents.py), each with a method
# `expectation`: a cost with a gradient. `Enumeration` is the sum over all codes, `rate` the KL
# divergence of a whole code.

# %%
given = tb.Tensor([[0.7]], requires_grad=True)
latents.Enumeration().expectation(given, cost, rng).sum().backward()
print("exact gradient", given.grad.data.item())
rate = latents.StraightThrough().rate(tb.Tensor(logit[:4, None].astype(np.float64)))
q = latents.StraightThrough().log_prob(np.array([0.7]), codes)

assert np.allclose(np.exp(q).sum(), 1)
assert math.isclose(given.grad.data.item(), exact[0], rel_tol=1e-5)
assert np.allclose(rate.data, stable[:4])

# %% [markdown]
# ## Summary
#
# A drawn bit is a step function of its logit, while the expected cost is smooth. For few bits its
# gradient is a sum over all codes, and that sum judges the estimators for many bits. The score
# function is right on average and noisy; a baseline lowers its spread and changes no average.
# Straight-through is quiet, and biased unless the cost is linear. What a bit costs is its KL
# divergence from a fair coin, at most $\ln 2$ nats.
#
# ## Exercises
#
# | number | name | task |
# |---|---|---|
# | 07.1 | `sample_bits` | bits of given probabilities, from given random numbers |
# | 07.2 | `exact_gradient` | the gradient of an expected cost, by a sum over all codes |
# | 07.3 | `score_function` | the score-function estimate from each code |
# | 07.4 | `straight_through` | drawn bits as an operation of your engine |
# | 07.5 | `kl_to_coin` | the KL divergence from fair coins, stable at the ends |
#
# Write them in `mybnn/latents.py` beside this notebook. Then `tinybnn course check 07` says what is
# right and what is not, and `tinybnn course hint 07.2` helps. The state of your answers:

# %%
from tinybnn import course  # noqa: E402

course.show("07")

# %% [markdown]
# Think about:
#
# 1. A code of 200 bits, whose cost is a sum of 200 terms, one for each bit. Which part of the score
#    function's estimate for bit 1 is pure noise? *Hint:* which terms does bit 1 change?
# 2. Which baseline makes the spread 0 for one bit? *Hint:* both values of the estimate must be the
#    same.
#
# ## Sources
#
# - R. Williams: *Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
#   Learning* (1992): the score function. W. Kool et al.: *Buy 4 REINFORCE Samples, Get a Baseline
#   for Free!* (2019): baselines from the other samples.
# - Y. Bengio, N. Léonard, A. Courville: *Estimating or Propagating Gradients Through Stochastic
#   Neurons* (2013), arXiv:1308.3432: straight-through.
# - E. Jang, S. Gu, B. Poole: *Categorical Reparameterization with Gumbel-Softmax* (2017); C.
#   Maddison, A. Mnih, Y. W. Teh: *The Concrete Distribution* (2017).
# - Z. Dong, A. Mnih, G. Tucker: *DisARM* (2020).
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
