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
# # Estimators compared
#
# **You will learn** when the choice of an estimator for the sign matters and when it does not, and
# how to compare such choices without fooling yourself: at equal step sizes, over several seeds, in
# pairs.
#
# **You need** the estimators of [02](02_the_gradient_of_sign.ipynb), and backpropagation
# ([01](01_autograd_from_scratch.ipynb)).
#
# **Time** 8 minutes of reading, about half a minute of running on two cores.

# %%
import itertools

import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import datasets, nn, plots, quantizers

# %% [markdown]
# ## The question
#
# `SteSign` passes the gradient where $|x| \le 1$. Others pass it everywhere, or mostly near 0.
# Which one trains a network best? The task is to recognize handwritten digits of 8×8 pixels, 1,437
# to learn from and 360 to test on. The networks have signs between their layers; their weights
# remain ordinary floats, so that only the estimator differs (binary weights follow in
# [03](03_first_binary_network.ipynb)). The loss is the squared distance of the ten scores from
# their targets: 1 for the right digit, 0 for the others.
#
# One training run says little, since another seed gives another accuracy. So we train twelve seeds
# at once, along the first axis of every array: twelve networks, each with its own initial weights
# and batches. (A *batch* is the set of images, here 64 drawn at random, from which one step's
# gradient is computed; using all 1,437 would take longer, for a step that is hardly better.)

# %%
train, test = datasets.load("digits")
pixels = train.images.reshape(-1, 64)
mean, spread = pixels.mean(), pixels.std()
X, X_test = (pixels - mean) / spread, (test.images.reshape(-1, 64) - mean) / spread
Y = np.eye(10, dtype=np.float32)[train.labels]
SEEDS, STEPS = 12, 300


def scores(estimator, weights, x):
    """(12, N, 64) -> (12, N, 10): products, scaled to a spread of about 1/2, and signs between."""
    for w in weights:
        if w is not weights[0]:
            x = estimator(x)
        x = x @ w * np.float32(w.shape[1] ** -0.5)
    return x


def accuracies(estimator, widths, rate, normalise=True):
    """Test accuracy of each seed after training."""
    rng = np.random.default_rng(0)
    weights = [
        tb.Tensor(np.float32(rng.uniform(-1, 1, (SEEDS, n, m))), requires_grad=True)
        for n, m in itertools.pairwise(widths)
    ]
    for step in range(STEPS):
        batch = rng.integers(0, len(X), (SEEDS, 64))
        error = scores(estimator, weights, tb.Tensor(X[batch])) - Y[batch]
        (error * error).sum().backward()
        for w in weights:
            g, w.grad = w.grad.data, None
            if normalise:
                g = g / np.sqrt((g * g).mean((1, 2), keepdims=True))
            w.data -= rate * (1 - step / STEPS) * g
    with tb.no_grad():
        best = scores(estimator, weights, tb.Tensor(X_test)).data.argmax(-1)  # (12, 360)
    return (best == test.labels).mean(1)


# %% [markdown]
# The seeds' spread, for `SteSign` and one layer of 32 signs:

# %%
values = accuracies(quantizers.SteSign(), (64, 32, 10), 0.02)
print(np.sort(values).round(3))
print(f"mean {values.mean():.3f}, standard deviation {values.std(ddof=1):.3f}")

assert 0.8 < values.mean() < 0.95 and values.std() > 0.003

# %% [markdown]
# ## The naive version
#
# Take two estimators, train both with the same rate, and compare the accuracies. Here the second
# estimator is simply ten times the first:


# %%
class TenTimes(quantizers.SteSign):
    def pseudo_gradient(self, x):
        return 10 * super().pseudo_gradient(x)


def both(rate, normalise):
    """Mean accuracies with SteSign and with ten times SteSign, two layers of signs."""
    found = [
        accuracies(q, (64, 32, 32, 10), rate, normalise).mean()
        for q in (quantizers.SteSign(), TenTimes())
    ]
    print(f"SteSign {found[0]:.3f}, ten times SteSign {found[1]:.3f}")
    return found


one, ten = both(0.003, normalise=False)

assert ten > one + 0.1

# %% [markdown]
# A large lead for an estimator that points in the same direction everywhere! It only takes larger
# steps: 10 times larger for the weights before the last sign, 100 times for those before both. What
# we compared was step sizes.
#
# ## The better version
#
# With `normalise`, each matrix's gradient is divided by its own size (the root of its mean square),
# so only its direction counts. (Adam, in [03](03_first_binary_network.ipynb), does something
# similar.) Now both are the same, up to rounding:

# %%
one, ten = both(0.02, normalise=True)

assert abs(one - ten) < 0.015

# %% [markdown]
# ## Measured
#
# Five estimators, in a network with one layer of signs and in a deep and narrow one with six.
# `SteSign(np.inf)` never clips: its pseudo-gradient is 1 everywhere, its surrogate the identity.
# Seeds are *paired*: each estimator gets the same twelve initial weights and batches, so
# differences can be taken seed by seed. The *standard error*, the standard deviation of these
# differences divided by $\sqrt{12}$, says how far their mean can be trusted.

# %%
CHOICES = {
    "SteSign": quantizers.SteSign(),
    "identity": quantizers.SteSign(np.inf),
    "ApproxSign": quantizers.ApproxSign(),
    "EdeSign, t = 1": quantizers.EdeSign(1.0),
    "SwishSign, β = 5": quantizers.SwishSign(5.0),
}
results = {
    depth: {q: accuracies(CHOICES[q], (64, *[32] * depth, 10), 0.02) for q in CHOICES}
    for depth in (1, 6)
}
print("accuracy, mean ± standard deviation; difference to SteSign, mean ± standard error")
for depth, row in results.items():
    for name, values in row.items():
        change = values - row["SteSign"]
        layers = f"{depth} layer{'s' * (depth > 1)} of signs"
        print(f"{layers:17}  {name:17} {values.mean():.3f} ± {values.std(ddof=1):.3f}"
              f"   {change.mean():+.3f} ± {change.std(ddof=1) / SEEDS**0.5:.3f}")  # fmt: skip

shallow, deep = results[1], results[6]
assert (deep["identity"] < deep["SteSign"]).all()
assert deep["SwishSign, β = 5"].mean() < deep["SteSign"].mean() - 0.04
assert abs(deep["EdeSign, t = 1"].mean() - deep["SteSign"].mean()) < 0.03
assert shallow["SwishSign, β = 5"].mean() > shallow["identity"].mean()

# %%
figure, sides = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True, layout="constrained")
for axes, (depth, row) in zip(sides, results.items(), strict=True):
    for i, values in enumerate(row.values()):
        jitter = np.linspace(-0.15, 0.15, SEEDS)
        axes.plot(i + jitter, values, "o", color=plots.MINUS, markersize=4, alpha=0.7)
        axes.plot([i - 0.25, i + 0.25], [values.mean()] * 2, color=plots.PLUS, linewidth=2.5)
    axes.set_xticks(range(len(row)), [name.replace(", ", "\n") for name in row], fontsize=9)
    axes.set_title(f"{depth} layer{'s' * (depth > 1)} of signs: 12 seeds (dots) and their mean")
sides[0].set_ylabel("test accuracy")
plt.show()

# %% [markdown]
# - **The identity fails with depth.** With six layers it is worse for every one of the twelve
#   seeds. A likely reason: each layer adds gradients for units that cannot respond, and the errors
#   multiply.
# - **The narrow estimator fails with depth, too.** `SwishSign` with $\beta = 5$ lets little through
#   beyond $|x| = 0.5$. With one layer of signs this does no harm and here even helps; with six
#   layers, perhaps too few paths are left.
# - **The others hardly differ.** `EdeSign` with $t = 1$ differs from `SteSign` by less than one
#   seed does from another. `ApproxSign` is ahead at both depths, by almost three standard errors or
#   more. Is it better? Ask again at other step sizes:

# %%
leads = {}
for depth, rate in ((6, 0.015), (1, 0.01), (1, 0.015), (1, 0.03)):
    widths = (64, *[32] * depth, 10)
    lead = accuracies(CHOICES["ApproxSign"], widths, rate) - accuracies(
        CHOICES["SteSign"], widths, rate
    )
    leads[depth, rate] = lead.mean()
    error = lead.std(ddof=1) / SEEDS**0.5
    print(f"layers {depth}, rate {rate:5}: {lead.mean():+.3f} ± {error:.3f}")

assert abs(leads[6, 0.015]) < 0.025
assert all(lead > 0 for (depth, _), lead in leads.items() if depth == 1)

# %% [markdown]
# With six layers the lead disappears at another step size. With one layer `ApproxSign` stays ahead
# by 1.5 to 2.3 points at every rate that we tried: a small difference, but a real one for this
# network and these data. Anyone who reports that one of the usual estimators wins should show
# several seeds and more than one setting.
#
# ## In the package
#
# A layer takes estimators, by name or as objects, for its inputs and for its weights.
# [`analysis.dynamics.compare_estimators`](../tinybnn/analysis/dynamics.py) compares estimators with
# the exact gradient of a noisy layer ([02](02_the_gradient_of_sign.ipynb)), and `optim.EdeSchedule`
# moves the $t$ of `EdeSign` from flat to steep while a network trains.

# %%
layer = nn.BinaryLinear(32, 10, input_quantizer="approx_sign", weight_quantizer="ste_sign")
print(layer)
x = tb.Tensor(np.random.default_rng(2).normal(size=(5, 32)).astype(np.float32))

assert np.array_equal(layer(x).data, quantizers.sign(x.data) @ quantizers.sign(layer.weight.data).T)

# %% [markdown]
# ## Summary
#
# Estimators of different size take steps of different size, and a plain comparison measures just
# that. At equal step sizes, an estimator that never clips fails in deep networks, and so does a
# very narrow one, although it does well with a single layer of signs. Differences between the usual
# ones are small: with six layers, the lead of `ApproxSign` comes and goes with the step size; with
# one layer it stays, at about two points.
#
# ## Exercises
#
# Exercise 02.5, `ede_gradient`, is the pseudo-gradient that can be flat or steep; the others of
# this chapter are in [02](02_the_gradient_of_sign.ipynb). Edit `mybnn/estimators.py` beside this
# notebook, then run `tinybnn course check 02` in a terminal; `tinybnn course hint 02.5` gives a
# hint. The next cell shows how far you are.

# %%
from tinybnn import course  # noqa: E402

course.show("02.5")

# %% [markdown]
# Think about:
#
# 1. `SteSign(clip_value=c)` of $x$ and `SteSign(1)` of $x / c$ have the same forward pass. How do
#    their gradients differ, and does it matter with normalised steps?
# 2. Twelve paired differences have the mean 0.016 and the standard error 0.006. What would you need
#    to see before you called one estimator better?
# 3. Measure what share of each layer's units has $|x| \le 1$ before and after training, for
#    `SteSign` and for the identity.
#
# ## Sources
#
# - M. Courbariaux et al.: *Binarized Neural Networks* (2016): why the estimator is clipped.
# - P. Yin et al.: *Understanding Straight-Through Estimator in Training Activation Quantized
#   Neural Nets* (2019): the identity can fail where clipped estimators do not.
# - H. Qin et al.: *Forward and Backward Information Retention for Accurate Binary Neural Networks*
#   (IR-Net, 2020): from flat to steep.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
