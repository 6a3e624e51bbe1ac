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
# # Compiling: batch norm and sign become one comparison
#
# **You will learn** how a batch norm and a sign become one comparison of integers, why that
# comparison is found by evaluating the function and not by a formula, what a max-pool before them
# changes, and how a whole network runs on words and integers and gives exactly the float network's
# answer.
#
# **You need** the layers of [03](03_first_binary_network.ipynb), where batch norm is explained, and
# the product of words of [04](04_xnor_and_popcount.ipynb). Max-pool is explained in
# [05](05_convolutions_on_bits.ipynb).
#
# **Time** about 14 minutes of reading; the cells run in less than half a minute.
#
# This notebook does by hand what `deploy.compile` does for any model: [06b](06b_the_compiler.ipynb)
# is about the compiler itself, [06c](06c_tasks_and_time.ipynb) about what makes its programs fast.

# %%
import itertools

import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import datasets, deploy, nn, optim, plots, training
from tinybnn import functional as F
from tinybnn.kernels.bits import pack
from tinybnn.kernels.xnor import xnor_matmul

# %% [markdown]
# ## The question
#
# A binary layer with 8 inputs gives, for each channel, a sum $s$ of eight products ±1: an integer
# from -8 to 8. Batch norm follows, and then the sign of the next layer. After training, batch norm
# has four fixed numbers for each channel: the mean $\mu$ and the variance $\sigma^2$ of its sums,
# and the learned scale $\gamma$ and shift $\beta$. It computes
#
# $$\text{norm}(s) = \frac{s - \mu}{\sqrt{\sigma^2 + \varepsilon}}\, \gamma + \beta, \qquad
# \varepsilon = 0.00001.$$
#
# ($\varepsilon$ keeps the division defined where the variance is 0.) The numbers are fixed, so the
# package computes $\alpha = \gamma / \sqrt{\sigma^2 + \varepsilon}$ once, and the norm as
# $\alpha s + (\beta - \mu \alpha)$. Take $\mu = 1$, $\sigma^2 = 4$, $\gamma = 0.5$, $\beta = 0.6$.
# For $s = 2$ the norm is about $(2 - 1) / 2 \cdot 0.5 + 0.6 = 0.85$, so the sign is +1. For all
# sums:

# %%
mean, var, gamma, beta = np.float32([[1], [4], [0.5], [0.6]])  # one channel: arrays (1,)
sums = np.arange(-8, 9)


def norm(sums, mean, var, gamma, beta):
    """The float network's batch norm: sums (n,), a channel -> float32 (n,)."""
    column = np.asarray(sums)[:, None].astype(np.float32)
    return F.batch_norm(column, mean, var, gamma, beta)[:, 0]


values = norm(sums, mean, var, gamma, beta)
for s, value in zip(sums[4:12], values[4:12], strict=True):
    print(f"s = {s:2}   norm {value:6.2f}   sign {'+1' if value >= 0 else '-1'}")

assert np.array_equal(values >= 0, sums >= -1)

# %% [markdown]
# All that is left of five operations on real numbers is: *is $s \ge -1$?* **How can we find this
# comparison for any channel, so that it is right for every sum?**
#
# The network that was trained and evaluated computes in float32 and rounds after each operation.
# *Right* means: always the same bit as that network. So we first have to reproduce its arithmetic,
# and NumPy has a trap here. An array of integers minus a float32 array is float64:

# %%
print("int32 - float32:  ", (np.int32([2]) - mean).dtype)
print("float32 - float32:", (np.float32([2]) - mean).dtype)

assert (np.int32([2]) - mean).dtype == np.float64

# %% [markdown]
# Float64 rounds in other places, so the sums must be converted to float32 before anything else.
# (Integers below $2^{24}$ are exact in float32.) Changing the order of operations also changes the
# rounding.
#
# ## The naive version
#
# Set the norm to zero and solve for $s$:
#
# $$t = \mu - \frac{\beta \sqrt{\sigma^2 + \varepsilon}}{\gamma}, \qquad \text{bit} =
# \begin{cases} [\, s \ge t \,] & \gamma > 0 \\ [\, s \le t \,] & \gamma < 0. \end{cases}$$
#
# ($[\,\ldots]$ is 1 if the condition holds.) For $\gamma < 0$ the norm falls as $s$ grows, so small
# sums have the sign +1. This is what most descriptions print. For our channel
# $t = 1 - 0.6 \cdot 2 / 0.5 = -1.4$, and the first integer from there on is -1.


# %%
def by_formula(s, mean, var, gamma, beta, dtype=np.float32):
    """The bit by the textbook formula, computed in ``dtype``; all arguments broadcast."""
    mean, var, gamma, beta = (a.astype(dtype) for a in (mean, var, gamma, beta))
    with np.errstate(all="ignore"):
        t = mean - beta * np.sqrt(var + dtype(1e-5)) / gamma
    return np.where(gamma > 0, s >= t, s <= t)


assert np.array_equal(by_formula(sums, mean, var, gamma, beta), values >= 0)

# %% [markdown]
# ## Where the formula fails
#
# **Special cases.** The table below shows the bits that the network (left) and the formula (right)
# give for $s$ from -8 to 8, + for 1 and - for 0. The variance is 16.

# %%
cases = {  # gamma, beta, mean
    "gamma > 0": (2, 1, 3),
    "gamma < 0": (-2, 1, 3),
    "gamma < 0, beta = 0": (-2, 0, 3),
    "gamma = 0, beta > 0": (0, 1, 3),
    "gamma = 0, beta = 0": (0, 0, 3),
    "gamma = 0, beta < 0": (0, -1, 3),
    "gamma NaN": (np.nan, 1, 3),
}
drawn = {}
for name, case in cases.items():
    g, b, m = np.float32(case).reshape(3, 1)
    channel = (m, np.float32([16]), g, b)
    answers = norm(sums, *channel) >= 0, by_formula(sums, *channel)
    drawn[name] = ["".join("-+"[int(bit)] for bit in bits) for bits in answers]
    print(f"{name:<22}{drawn[name][0]:<20}{drawn[name][1]}")

assert drawn["gamma = 0, beta > 0"][0] == "+" * 17 and drawn["gamma NaN"][0] == "-" * 17
assert any(network != formula for network, formula in drawn.values())

# %% [markdown]
# - $\gamma < 0$: the sum *at* which the norm is exactly 0 (third row, $s = 3$) has the sign +1,
#   just as for $\gamma > 0$. So $[s \le t]$ is not the opposite of $[s \ge t]$: both hold at
#   $s = t$.
# - $\gamma = 0$: the norm is $\beta$ for every sum, a constant. The formula divides by zero.
# - NaN is neither $\ge 0$ nor $< 0$. The convention of the package is that its sign is -1. What the
#   formula gives depends on the direction in which the comparison is written.
#
# **Rounding.** A more careful formula could treat these cases. But take a million channels with
# random parameters of the sizes that occur with sums of 1152 signs. Formula and network can differ
# only next to the threshold, so it is enough to check the three integers around it.


# %%
def disagreements(mean, var, gamma, beta, largest, dtype=np.float32):
    """An integer for each channel at which formula and network differ, or NaN."""
    t = np.rint(mean - beta * np.sqrt(var.astype(np.float64)) / gamma)
    differ_at = np.full(len(mean), np.nan)
    for s in (t - 1, t, t + 1):
        network = F.batch_norm(s[None].astype(np.float32), mean, var, gamma, beta)[0] >= 0
        formula = by_formula(s, mean, var, gamma, beta, dtype)
        found = (network != formula) & (np.abs(s) <= largest)
        differ_at[found] = s[found]
    return differ_at


channels, largest = 1_000_000, 1152
rng = np.random.default_rng(1)
means = rng.normal(0, np.sqrt(largest), channels).astype(np.float32)
variances = (largest * rng.uniform(0.3, 3, channels)).astype(np.float32)
gammas, betas = rng.normal(size=(2, channels)).astype(np.float32)

round_parameters = (
    np.rint(means),
    np.rint(np.sqrt(variances)) ** 2,
    np.copysign(np.maximum(np.rint(np.abs(gammas) * 16), 1) / 16, gammas),
    np.rint(betas * 16) / 16,
)
counts = {}
print("channels that differ, of a million         float32   float64")
for name, parameters in (
    ("random parameters", (means, variances, gammas, betas)),
    ("round parameters", round_parameters),
):
    counts[name] = [
        int((~np.isnan(disagreements(*parameters, largest, dtype))).sum())
        for dtype in (np.float32, np.float64)
    ]
    print(f"{name:<40}{counts[name][0]:10,}{counts[name][1]:10,}")

assert counts["random parameters"][0] > 0
assert counts["round parameters"][1] > counts["round parameters"][0] > channels / 1000

# %% [markdown]
# In the *round* parameters, means and standard deviations are integers, and $\gamma$ and $\beta$
# are multiples of 1/16, as in tests and on hardware that stores them with few bits.
#
# More digits do not help, and for round parameters they do harm. There, the true threshold would
# often be exactly an integer if the small $\varepsilon$ were not added. For a variance of 256 the
# network's $\alpha$ is $\gamma / 16$, rounded to float32, as without $\varepsilon$. In float64,
# $\varepsilon$ moves the threshold past the integer. Here is one of the random channels:

# %%
c = np.flatnonzero(~np.isnan(disagreements(means, variances, gammas, betas, largest)))[:1]
one = means[c], variances[c], gammas[c], betas[c]
s = disagreements(*one, largest)
for name, value in zip(("mean", "variance", "gamma", "beta"), one, strict=True):
    print(f"{name:<9} {value[0]:.9g}")
print(f"norm of {s[0]:.0f}: {norm(s, *one)[0]:.3g}")
print(f"bit: network {norm(s, *one)[0] >= 0}, formula {by_formula(s, *one)[0]}")

everywhere = np.arange(-largest, largest + 1)
assert ((norm(everywhere, *one) >= 0) != by_formula(everywhere, *one)).sum() == 1

# %% [markdown]
# The true threshold is so close to an integer that rounding decides, and the formula rounds in
# other places.
#
# ## The better version: ask the function
#
# The mistake was to look for the *true* threshold. What we want is the threshold of the float32
# function. That function has few possible arguments: with $K$ products, a sum is one of $2K + 1$
# integers. We evaluate it at all of them, and read off where the sign changes.
#
# Can it change more than once, with all that rounding? No. Multiplying by a constant and adding one
# together either keep the order of all numbers or reverse it, and rounding never reverses it. Two
# neighbours may become equal, but they cannot change places. So the sign changes once or never, and
# all that is left of batch norm and sign is an integer $t$ and a bit $f$ (*flipped*) for each
# channel:
#
# $$\text{bit} = [\, s \ge t \,] \oplus f$$
#
# where $\oplus$ is XOR: $f = 1$ inverts the bit. The table above shows three kinds of channel.
#
# - It begins with -1 and changes: $t$ is the first sum with +1, and $f = 0$.
# - It begins with +1 and changes: $t$ is the first sum with -1, and $f = 1$.
# - It never changes: $f = 0$, and $t$ is $-K$, which is always reached, or $K + 1$, which never is.


# %%
def fold_channel(plus, largest):
    """Bits of a channel at all sums from -largest to largest -> threshold, flipped."""
    for i in range(1, len(plus)):
        if plus[i] != plus[i - 1]:
            return i - largest, bool(plus[0])
    return (-largest if plus[0] else largest + 1), False


for name, case in cases.items():
    g, b, m = np.float32(case).reshape(3, 1)
    plus = norm(sums, m, np.float32([16]), g, b) >= 0
    t, flipped = fold_channel(plus, 8)
    print(f"{name:<22}t = {t:2}, f = {int(flipped)}")
    assert np.array_equal((sums >= t) != flipped, plus)

# %%
figure, sides = plt.subplots(1, 3, figsize=(10, 2.6), sharey=True, layout="constrained")
for axes, name in zip(sides, ("gamma > 0", "gamma < 0", "gamma = 0, beta > 0"), strict=True):
    g, b, m = np.float32(cases[name]).reshape(3, 1)
    values = norm(sums, m, np.float32([16]), g, b)
    colors = np.where(values >= 0, plots.PLUS, plots.MINUS)
    axes.scatter(sums, values, c=colors, s=20)
    axes.axhline(0, color="0.8", zorder=0)
    t, _ = fold_channel(values >= 0, 8)
    axes.axvline(t - 0.5, color="0.5", linestyle="--")
    axes.set(title=f"{name}: t = {t}", xlabel="sum s", ylabel="norm of s")
    axes.label_outer()
plt.show()

# %% [markdown]
# (Orange is +1, blue is -1; the dashed line stands just before the threshold.) No case needs its
# own code: not $\gamma < 0$, not $\gamma = 0$, not NaN, and not the channel in which rounding
# decided:

# %%
t, flipped = fold_channel(norm(everywhere, *one) >= 0, largest)

assert np.array_equal((everywhere >= t) != flipped, norm(everywhere, *one) >= 0)

# %% [markdown]
# ## Max-pool before the norm
#
# In convolutional networks the order is often convolution, max-pool, batch norm, sign. Max-pool
# keeps the largest of four sums. A packed program would rather compare first, since four bits are
# cheaper to store than four sums. Do the four bits determine the bit of the largest sum?
#
# Take $t = 2$ and the sums 5, 1, -3, 0. If the channel rises, their bits are 1, 0, 0, 0. The
# largest sum, 5, has the bit 1: one bit is set, so the answer is 1 (OR). If the channel falls ($f =
# 1$), the bits are 0, 1, 1, 1, and the bit of 5 is 0: it is 1 only if *all* bits are (AND). The
# check tries every window of four sums from -3 to 3.

# %%
every_window = np.array(list(itertools.product(range(-3, 4), repeat=4)))
for flipped, pool in ((False, np.any), (True, np.all)):
    bits = (every_window >= 2) != flipped
    bit_of_the_largest = (every_window.max(axis=1) >= 2) != flipped
    assert np.array_equal(pool(bits, axis=1), bit_of_the_largest)
wrong = (bits.any(axis=1) != bit_of_the_largest).sum()
print(f"in a falling channel OR is wrong in {wrong:,} of {len(bits):,} windows")

# %% [markdown]
# ## A whole network on words
#
# Here is a network of two binary layers for the digits of [03](03_first_binary_network.ipynb). A
# pixel, from -1 to 1, becomes one sign, so an image is 64 signs: one word. Half of the $\gamma$
# begin at -1, so that channels of both kinds appear.


# %%
train, test = datasets.load("digits")
rng = np.random.default_rng(0)
first, batch_norm = nn.BinaryLinear(64, 256, rng=rng), nn.BatchNorm1d(256)
last = nn.BinaryLinear(256, 10, rng=rng)
model = nn.Sequential(nn.Flatten(), first, batch_norm, last)
batch_norm.weight.data[::2] = -1
training.fit(
    model,
    datasets.DataLoader(train, batch_size=64, shuffle=True, rng=rng),
    epochs=15,
    optimizer=optim.Adam(model.parameters(), lr=1e-2),
    progress=False,
)
model.eval()

images, labels = next(iter(datasets.DataLoader(test, batch_size=len(test))))
with tb.no_grad():
    float_scores = model(tb.Tensor(images)).data
print(f"test accuracy {training.accuracy(float_scores, labels):.1%}")

assert training.accuracy(float_scores, labels) > 0.75

# %% [markdown]
# With one bit per pixel and no tuning, accuracy is not the point here. Now we write the program.
# Before it runs, we pack the weights and fold each channel of the hidden layer, whose sums have 64
# products.

# %%
K = 64
every_sum = np.arange(-K, K + 1)
parameters = (
    batch_norm.running_mean, batch_norm.running_var,
    batch_norm.weight.data, batch_norm.bias.data,
)  # fmt: skip
table = F.batch_norm(every_sum[:, None] * np.ones(256, np.float32), *parameters)  # (129, 256)
folded = [fold_channel(plus, K) for plus in (table >= 0).T]
thresholds, flips = np.array(folded).T
flips = flips.astype(bool)

words_1 = pack(first.binary_weight())  # (256, 1): one word per row
words_2 = pack(last.binary_weight())  # (10, 4)
print(f"{flips.sum()} of {len(flips)} channels are flipped, thresholds {thresholds[:8]} ...")

assert np.array_equal((every_sum[:, None] >= thresholds) != flips, table >= 0)

# %% [markdown]
# The program consists of a product of words, a comparison, packing, and a product of words.

# %%
signs = np.where(images.reshape(-1, 64) >= 0, np.float32(1), np.float32(-1))
hidden = xnor_matmul(pack(signs), words_1, 64)  # integer sums (360, 256)
bits = (hidden >= thresholds) != flips
words = pack(np.where(bits, np.float32(1), np.float32(-1)))  # (360, 4)
scores = xnor_matmul(words, words_2, 256)
print(scores[0], scores.dtype)

assert np.array_equal(scores, float_scores)

# %% [markdown]
# Nothing between the packed image and the ten scores is a float, and each of the 3,600 scores
# equals the float network's. The last layer's sums are not compared with thresholds: the largest
# one gives the digit.
#
# `pack` takes signs, not bits: True and False are the numbers 1 and 0, and whether 0 counts as a
# minus depends on how `pack` compares.
#
# ## Measured
#
# How large are the two networks?

# %%
float_bytes = sum(a.nbytes for a in model.state_dict().values())
packed_bytes = words_1.nbytes + words_2.nbytes + 2 * len(thresholds) + len(flips)
print(f"floats {float_bytes:,} bytes, words and 16-bit thresholds {packed_bytes:,} bytes")

assert float_bytes > 20 * packed_bytes

# %% [markdown]
# The ratio is less than 32, the ratio of a float to a bit, since thresholds are still numbers. Time
# is another matter: here, sums, bits, signs and words are arrays passed between calls from Python,
# and these cost more than the products. In [06c](06c_tasks_and_time.ipynb) these arrays are never
# created.
#
# ## In the package
#
# [`deploy.compile`](../tinybnn/deploy/compiler.py) folds in the same way: it evaluates the
# operations between a sum and a sign at every sum that can occur
# ([`deploy/scan.py`](../tinybnn/deploy/scan.py)). Its thresholds must equal ours.

# %%
packed = deploy.compile(model, (1, 8, 8))
[step] = [step for step in packed.steps if step.operation == "threshold"]

assert np.array_equal(step.arrays["thresholds"], thresholds)
assert np.array_equal(step.arrays["flip"], flips)
assert np.array_equal(packed.predict(images), float_scores)
print(packed)

# %% [markdown]
# ## Summary
#
# Batch norm and sign of an integer sum are one comparison with an integer, and a flip where the
# norm falls. The threshold is found by evaluating the float32 function at every sum, since that
# function, with its rounding, is the network; the textbook formula differs from it in some
# channels, even in float64. A max-pool before them becomes OR, and AND in flipped channels. So a
# binary network is products of words, comparisons and packing, and its scores equal the float
# network's with `==`.
#
# ## Exercises
#
# | number | name | task |
# |---|---|---|
# | 06.1 | `normalized` | batch norm with fixed numbers, in float32, in the given order |
# | 06.2 | `fold` | thresholds and flips of all channels |
# | 06.3 | `fold_pooled` | max-pool before the norm, on bits |
# | 06.4 | `packed_predict` | a network of any number of layers, on words |
#
# Write them in `mybnn/folding.py` beside this notebook. Then `tinybnn course check 06` says what is
# right and what is not, and `tinybnn course hint 06.2` helps. When all are right, `tinybnn course
# milestone 2` trains BinaryNet with your code and runs it on your words. The state of your answers:

# %%
from tinybnn import course  # noqa: E402

course.show("06")

# %% [markdown]
# Your `normalized` subtracts $\mu$ and divides by $\sqrt{\sigma^2 + \varepsilon}$; the package
# multiplies by $\alpha$ and adds $\beta - \mu \alpha$. The two round differently, so one channel in
# many thousands has another threshold. Each `fold` is right for its own network.
#
# Think about:
#
# 1. Sums of 8 products ±1 are even: -8, -6, … 8. How many different thresholds give the same
#    program, and which one would you store?
# 2. XNOR-Net multiplies each sum by the mean magnitude of the filter's weights. What becomes of
#    these factors when batch norm and sign follow? *Hint:* which function of one integer do you
#    evaluate now?
# 3. Take the round parameters and compute $t$ in float64 with $\varepsilon = 0$. Is it better or
#    worse than with it? *Hint:* compare `np.float32(256) + np.float32(1e-5)` and `np.float32(16) +
#    np.float32(1e-5)`.
#
# ## Sources
#
# - Y. Umuroglu et al.: *FINN* (2017), arXiv:1612.07119: batch norm and sign as a threshold,
#   max-pool as OR.
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016), arXiv:1602.02830.
# - S. Ioffe, C. Szegedy: *Batch Normalization* (2015), arXiv:1502.03167.
# - D. Goldberg: *What Every Computer Scientist Should Know About Floating-Point Arithmetic*, ACM
#   Computing Surveys 23(1) (1991).
