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
# # Compiling: from a trained model to a program on bits
#
# **You will learn** how a batch norm and a sign become one comparison of integers, and why that
# comparison is found by trying rather than by solving for it; how a compiler reads a model and
# decides what can be bits; which float sums remain and what keeps them equal; how several steps
# become one call of a kernel; what is in the file, and where the time goes.
#
# **You need** notebooks 03 to 05. Reading takes about thirty minutes, running less than a minute;
# the first time longer, since kernels are compiled.
#
# One question runs through all of it: when is the program on bits *right*? Our answer is that each
# number it gives equals the float network's, compared with `==`. Times are those of the machine
# that ran the notebook.

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # NumPy on one core

# %%
import itertools
import math
import time

import matplotlib.pyplot as plt
import numba
import numpy as np

import tinybnn as tb
from tinybnn import datasets, deploy, models, nn, optim, plots, training
from tinybnn import functional as F
from tinybnn.kernels import xnor
from tinybnn.kernels.bits import pack, unpack, words_for
from tinybnn.kernels.floats import fused, pointwise
from tinybnn.tensor import trace

numba.set_num_threads(1)

# %% [markdown]
# ## A model to compile
#
# The model is the small network of `models.cnn`, with three convolutions and two dense layers,
# trained for three epochs on the digits of notebook 03. That is too short for a good result, but
# enough for a model whose numbers are not random.
#
# Training rarely takes a $\gamma$ of batch norm through zero within three epochs. We want to see
# all cases, so about half of them begin with -1, and one is set to 0 at the end.

# %%
train, test = datasets.load("digits")
images, labels = next(iter(datasets.DataLoader(test, batch_size=len(test))))

rng = np.random.default_rng(0)
model = models.cnn(images.shape[1:], padding=1, rng=rng)
for module in model.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.weight.data *= rng.choice(np.float32([-1, 1]), len(module.weight.data))

history = training.fit(
    model,
    datasets.DataLoader(train, batch_size=64, shuffle=True, rng=rng),
    epochs=3,
    optimizer=optim.Adam(model.parameters(), lr=1e-2),
    progress=False,
)
model[7].weight.data[5] = 0
model.eval()
print(model)
print(f"accuracy in the last epoch of training: {history['accuracy'][-1]:.1%}")

# %% [markdown]
# ## Part one: a comparison of integers
#
# ### 1. A function of one integer
#
# The third convolution, `model[6]`, has 64 input channels and filters of 3 × 3. Each of its sums
# has $K = 576$ terms ±1, so it is an integer from -576 to 576. (With zeros outside the image, sums
# at the border have fewer terms; all are in this range.) Batch norm and the sign of the next layer
# follow:
#
# $$\operatorname{sign}\left(\gamma\, \frac{s - \mu}{\sqrt{\sigma^2 + \varepsilon}} +
# \beta\right).$$
#
# In eval mode $\mu$, $\sigma^2$, $\gamma$ and $\beta$ are constants of the channel. So the result
# is a function of the integer $s$ alone, and there are 1153 possible values of it. We can know the
# whole function by calling it 1153 times.

# %%
K = 576
norm = model[7]
integers = np.arange(-K, K + 1)


def apply_norm(integers, norm):
    """What the float network computes: integers (n,) -> float32 (n, channels)."""
    every_channel = integers[:, None].astype(np.float32) * np.ones(len(norm.weight.data), "f4")
    return F.batch_norm(
        every_channel, norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data,
        eps=norm.eps,
    )  # fmt: skip


values = apply_norm(integers, norm)
is_plus = values >= 0
print(values.shape, values.dtype)

# %%
gamma = norm.weight.data
rising, falling, constant = np.argmax(gamma > 0), np.argmax(gamma < 0), 5

figure, sides = plt.subplots(1, 3, figsize=(11, 3), sharey=True, layout="constrained")
for axes, channel in zip(sides, (rising, falling, constant), strict=True):
    changes = np.flatnonzero(is_plus[1:, channel] != is_plus[:-1, channel])
    middle = integers[changes[0] + 1] if len(changes) else 0
    shown = np.abs(integers - middle) <= 12
    for sign, color in ((True, plots.PLUS), (False, plots.MINUS)):
        part = shown & (is_plus[:, channel] == sign)
        label = "sign +1" if sign else "sign -1"
        axes.plot(integers[part], values[part, channel], "o", color=color, label=label)
    if len(changes):
        axes.axvline(middle - 0.5, color="0.5", linestyle="--")
    axes.axhline(0, color="0.8", zorder=0)
    axes.set(title=f"channel {channel}, γ = {gamma[channel]:.2f}", xlabel="sum s")
sides[0].set_ylabel("batch norm of s")
sides[0].legend(loc="upper left", fontsize=8)
plt.show()

# %% [markdown]
# For $\gamma > 0$ the function rises and the sign changes from -1 to +1, once. For $\gamma < 0$ it
# falls and the sign changes from +1 to -1, once. For $\gamma = 0$ it never changes.
#
# Is *once* certain, with floats that are rounded after each operation? Yes. Subtracting a constant,
# multiplying by one and adding one never reverse the order of two numbers, or always do, and
# neither does rounding. Two neighbours may become equal, but they cannot change places.
#
# So all that is left of batch norm and sign is
#
# $$\text{bit} = [\, s \ge t \,] \oplus f,$$
#
# an integer $t$ and a bit $f$ for each channel. `fold` reads both off. A channel that never changes
# gets the smallest sum as $t$: it is always reached.


# %%
def fold(is_plus, lowest):
    """Signs at all integers from ``lowest`` on, (n, channels) bool -> thresholds and flips."""
    changes = is_plus[1:] != is_plus[:-1]
    assert (changes.sum(axis=0) <= 1).all()
    changes_once = changes.any(axis=0)
    thresholds = lowest + np.where(changes_once, changes.argmax(axis=0) + 1, 0)
    flips = np.where(changes_once, is_plus[0], ~is_plus[0])
    return thresholds, flips


thresholds, flips = fold(is_plus, -K)
for channel in (rising, falling, constant):
    print(f"channel {channel}: t = {thresholds[channel]}, f = {int(flips[channel])}")

assert np.array_equal((integers[:, None] >= thresholds) != flips, is_plus)

# %% [markdown]
# ### 2. The formula of the books
#
# Why so many calls for one number? Setting the expression to zero and solving for $s$ gives
#
# $$t = \mu - \frac{\beta \sqrt{\sigma^2 + \varepsilon}}{\gamma}, \qquad \text{bit} =
# \begin{cases} [\, s \ge t \,] & \gamma > 0 \\ [\, s \le t \,] & \gamma < 0, \end{cases}$$
#
# which is what most descriptions print. As mathematics it is right. Let us compare it with the
# float network, for this layer first, at every integer.


# %%
def by_formula(s, mean, var, gamma, beta, dtype=np.float32):
    """The bit as books print it, computed in ``dtype``."""
    mean, var, gamma, beta = (a.astype(dtype) for a in (mean, var, gamma, beta))
    with np.errstate(all="ignore"):
        t = mean - beta * np.sqrt(var + dtype(1e-5)) / gamma
    return np.where(gamma > 0, s >= t, s <= t)


usual = np.arange(64) != 5  # without the channel of gamma = 0, where the formula divides by 0
found = by_formula(
    integers[:, None], norm.running_mean, norm.running_var, gamma, norm.bias.data
)  # fmt: skip
wrong = (found != is_plus)[:, usual]
print(f"{wrong.any(axis=0).sum()} of {usual.sum()} channels differ somewhere")

# %% [markdown]
# Most likely none. Now a million channels, with parameters drawn at random: means and standard
# deviations as sums of 1152 signs have them, $\gamma$ and $\beta$ normal. Since the sign changes
# once, the two can only differ next to the change, and it is enough to look at the three integers
# around $t$.


# %%
def float_network(s, mean, var, gamma, beta):
    """The bit as the float32 network has it; everything (channels,)."""
    return F.batch_norm(s[None].astype(np.float32), mean, var, gamma, beta)[0] >= 0


def disagreements(mean, var, gamma, beta, largest, dtype=np.float32):
    """An integer for each channel in which formula and network differ, or NaN."""
    t = np.rint(mean - beta * np.sqrt(var.astype(np.float64)) / gamma)
    differ_at = np.full(len(mean), np.nan)
    for s in (t - 1, t, t + 1):
        differ = float_network(s, mean, var, gamma, beta) != by_formula(
            s, mean, var, gamma, beta, dtype
        )
        differ_at[differ & (np.abs(s) <= largest)] = s[differ & (np.abs(s) <= largest)]
    return differ_at


channels, largest = 1_000_000, 1152
rng = np.random.default_rng(1)
mean = rng.normal(0, np.sqrt(largest), channels).astype(np.float32)
var = (largest * rng.uniform(0.3, 3, channels)).astype(np.float32)
gamma, beta = rng.normal(size=(2, channels)).astype(np.float32)

differ_at = disagreements(mean, var, gamma, beta, largest)
bad = np.flatnonzero(~np.isnan(differ_at))
print(f"{len(bad)} of {channels:,} channels differ")

assert len(bad) > 0

# %% [markdown]
# They exist. Here is one, in full: at one integer the two give different bits.

# %%
c = bad[:1]
s = np.array([differ_at[c[0]]])
one = (mean[c], var[c], gamma[c], beta[c])
t = mean[c] - beta[c] * np.sqrt(var[c] + np.float32(1e-5)) / gamma[c]
norm_of_s = F.batch_norm(s[None].astype(np.float32), *one)[0]
exact = (s - mean[c].astype(float)) / np.sqrt(var[c].astype(float) + 1e-5)
exact = exact * gamma[c].astype(float) + beta[c].astype(float)
for name, value in zip(("mean", "variance", "gamma", "beta"), one, strict=True):
    print(f"{name:<9} {value[0]!r}")
print(f"t by the formula: {t[0]!r}, sum s = {s[0]:.0f}")
print(f"batch norm of s: {norm_of_s[0]!r} in float32, {exact[0]:.3g} in float64")
print(f"bit: network {float_network(s, *one)[0]}, formula {by_formula(s, *one)[0]}")

everywhere = np.arange(-largest, largest + 1)
network = np.array([float_network(np.array([k]), *one)[0] for k in everywhere])
formula = by_formula(everywhere, *one)
assert (network != formula).sum() == 1

# %% [markdown]
# The true threshold is so close to an integer that what decides is rounding, and the two
# expressions round in different places.

# %% [markdown]
# ### 3. More digits do not help
#
# Should one compute $t$ more precisely, in float64? We count again, with both, and with parameters
# that are round numbers as well: integers as means and standard deviations, multiples of 1/16 as
# $\gamma$ and $\beta$. Parameters look like that in tests, in examples, and on hardware that stores
# them with few bits.

# %%
round_var = np.rint(np.sqrt(var)) ** 2
round_gamma = np.copysign(np.maximum(np.rint(np.abs(gamma) * 16), 1) / 16, gamma)
round_beta = np.rint(beta * 16) / 16
print("channels that differ, of a million         float32   float64")
for name, parameters in (
    ("normal parameters", (mean, var, gamma, beta)),
    ("round parameters", (np.rint(mean), round_var, round_gamma, round_beta)),
):
    counts = [
        (~np.isnan(disagreements(*parameters, largest, dtype))).sum()
        for dtype in (np.float32, np.float64)
    ]
    print(f"{name:<40}{counts[0]:10,}{counts[1]:10,}")

assert counts[1] > counts[0] > channels / 1000

# %% [markdown]
# More digits do not help, and for round parameters they do harm. With these, true thresholds are
# often exactly an integer but for the small $\varepsilon$. In float32, $256 + 10^{-5}$ *is* 256, so
# the network computes without $\varepsilon$; float64 knows better, and moves the threshold past the
# integer.
#
# The mistake is to look for the true threshold. The network that was trained, and whose accuracy
# was measured, is the float32 one with its rounding. So the right threshold is the one of that
# function, and the sure way to it is to ask the function itself, at every integer that the
# accumulator can reach.

# %% [markdown]
# ### 4. Zero, and not a number
#
# The same way needs no special cases. Below, the signs that the network and the formula give for
# $s$ from -8 to 8.

# %%
nan = np.nan
cases = {  # gamma, beta, mean; the variance is 16
    "gamma > 0": (2, 1, 3),
    "gamma < 0": (-2, 1, 3),
    "gamma = 0, beta > 0": (0, 1, 3),
    "gamma = 0, beta = 0": (0, 0, 3),
    "gamma = 0, beta < 0": (0, -1, 3),
    "gamma NaN": (nan, 1, 3),
    "gamma < 0, mean NaN": (-2, 1, nan),
}
few = np.arange(-8, 9)
g, b, m = np.array(list(cases.values()), np.float32).T
grid = few[:, None] * np.ones(len(g), np.float32)
network = F.batch_norm(grid, m, np.full_like(m, 16), g, b) >= 0
formula = by_formula(few[:, None], m, np.full_like(m, 16), g, b)
few_thresholds, few_flips = fold(network, -8)
print(f"{'':<22}{'network':<20}{'formula':<20}{'t':>3} f")
for i, name in enumerate(cases):
    drawn = ["".join("-+"[bit] for bit in bits[:, i].astype(int)) for bits in (network, formula)]
    print(f"{name:<22}{drawn[0]:<20}{drawn[1]:<20}{few_thresholds[i]:>3} {int(few_flips[i])}")

assert np.array_equal((few[:, None] >= few_thresholds) != few_flips, network)
assert not np.array_equal(formula, network)

# %% [markdown]
# - $\gamma < 0$ flips. Note that the sum *at* the zero of the line is +1 on both sides: $[s \le t]$
#   is not the opposite of $[s \ge t]$.
# - $\gamma = 0$ is a constant, the sign of $\beta$. The formula divides by zero.
# - NaN is neither $\ge 0$ nor $< 0$. The convention of the package is that sign(NaN) is -1,
#   everywhere. What the formula gives depends on which way round the comparison was written.

# %% [markdown]
# ### 5. What one wrong bit does
#
# A few channels in a million, and then one sum among a thousand: does it matter? Take the trained
# model, and turn over *one* of the 512 signs that enter the second convolution, in each image
# another one. Then count what differs behind each later batch norm, which is what the next sign
# sees.

# %%
with tb.no_grad():
    x = tb.Tensor(images)
    for i in range(3):
        x = model[i](x)
    before = x.data.transpose(0, 2, 3, 1).reshape(len(images), -1)  # (N, 512), the sign's argument
    after = before.copy()
    chosen = rng.integers(0, before.shape[1], len(images))
    after[np.arange(len(images)), chosen] *= -1
    a, b = (
        tb.Tensor(v.reshape(len(images), 4, 4, 32).transpose(0, 3, 1, 2)) for v in (before, after)
    )
    share = 1 / before.shape[1]
    layers = [("before layer 3", share, share)]  # share of values and of signs that differ
    for i in range(3, len(model)):
        a, b = model[i](a), model[i](b)
        if isinstance(model[i], nn.BatchNorm1d | nn.BatchNorm2d):
            signs_differ = (a.data >= 0) != (b.data >= 0)
            layers.append((f"behind layer {i}", (a.data != b.data).mean(), signs_differ.mean()))

changed = (a.data != b.data).any(axis=1)
moved = a.data.argmax(axis=1) != b.data.argmax(axis=1)
print(f"one sign of {before.shape[1]} turned over in each of {len(images)} images:")
print(f"{changed.sum()} images have other logits, {moved.sum()} another prediction")
for name, logits in (("before", a.data), ("after", b.data)):
    print(f"accuracy {name}: {training.accuracy(logits, labels):.1%}")

assert changed.mean() > 0.5

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
names, differing, signs = zip(*layers, strict=True)
axes.plot(names, differing, "o-", color=plots.MINUS, label="values")
axes.plot(names, signs, "o-", color=plots.PLUS, label="signs")
axes.set(yscale="log", ylabel="share that differs")
axes.grid(axis="y", color="0.92")
axes.legend(loc="upper left", frameon=False)
plt.show()

# %% [markdown]
# The sign reaches all sums of the pixels around it, and changes them by 2. Most stay on their side
# of the threshold; some pass it, and each of these does the same in the next layer. In a float
# network a small error mostly stays small. A binary network has no small errors: a bit is right or
# wrong.
#
# The accuracy hardly moves, since most wrong logits still have their largest value in the right
# place. So accuracy is a poor test: a program that is wrong in a few bits of every image can have
# the accuracy of a right one. And "almost equal" is no test at all: where rounding turns a sign
# over, the error is as large as any other, and no tolerance can tell them apart.
#
# This leaves `==`. It is also the more comfortable test: it needs no tolerance, and when it fails,
# it points to the first layer with a difference, which is where the mistake is.

# %% [markdown]
# ## Part two: max-pool
#
# ### 6. OR or AND
#
# In the second block of the model the order is convolution, max-pool, batch norm, sign. Pooling is
# cheapest on bits, so the comparison has to come first. For a rising function the sign of the
# maximum is the maximum of the signs (OR); for a falling one it is their minimum (AND), as in
# notebook 05.
#
# Whether it rises or falls is read off in the same way, from the signs at all integers. With one
# change of sign, $f = 1$ says that it falls.

# %%
with tb.no_grad():
    x = tb.Tensor(images)
    for i in range(4):
        x = model[i](x)
    expected = model[5](model[4](x)).data >= 0  # pool, batch norm, sign

sums = x.data.transpose(0, 2, 3, 1)  # (N, 4, 4, 64)
terms = 9 * 32
signs_of_all = apply_norm(np.arange(-terms, terms + 1), model[5]) >= 0
t, falls = fold(signs_of_all, -terms)
bits = (sums >= t) != falls
windows = bits.reshape(len(bits), 2, 2, 2, 2, 64)  # (N, H/2, 2, W/2, 2, C)
any_one, all_ones = windows.any(axis=(2, 4)), windows.all(axis=(2, 4))
pooled = np.where(falls, all_ones, any_one)
right = expected.transpose(0, 2, 3, 1)
print(f"OR everywhere: {(any_one != right).mean():.1%} of the bits are wrong")

assert np.array_equal(pooled, right)

# %% [markdown]
# ## Part three: the compiler
#
# `deploy.compile` does this for whole models, in four passes. The first two fit on a page; we write
# them in a simple form.
#
# ### 7. Trace
#
# A model is a Python program, and its `forward` can be anything. The compiler does not read the
# source. It runs the model once, in eval mode, and has each operation recorded with what came in
# and what came out. What it compiles is thus what the model computes.

# %%
x = tb.Tensor(images[:2])
with tb.no_grad(), trace() as calls:
    model(x)

for i, call in enumerate(calls[:7]):
    print(i, type(call.function).__name__, call.output.shape)

# %% [markdown]
# ### 8. Kinds
#
# Going forward, each value gets a *kind*:
#
# - **signs**: the result of a sign, or a rearrangement of signs;
# - **sums**: a convolution or a matrix product of signs with weights ±1, an integer whose bounds
#   are known;
# - **float**: anything else.
#
# A product of signs is the operation that training runs, too. It takes the latent weight, whose
# signs do not depend on the input: they are constants.


# %%
def kinds(calls, x):
    """id of each Tensor that depends on x -> its kind."""
    kind = {id(x): "float"}
    for call in calls:
        read = [kind[id(t)] for t in call.inputs if id(t) in kind]
        operation = type(call.function).__name__
        if not read:
            continue  # a constant
        found = "float"
        if operation == "Quantize":
            found = "signs"
        elif read == ["signs"] and operation in ("SignConv2d", "SignLinear"):
            found = "sums"
        elif read == ["signs"] and operation in ("MaxPool2d", "Reshape"):
            found = "signs"
        kind[id(call.output)] = found
    return kind


kind_of = kinds(calls, x)

# %% [markdown]
# ### 9. Forms
#
# Going backward from the output, each value is asked for in the *forms* that its readers want: as a
# float array, as bits, or as accumulators, which are integers. A convolution of signs wants bits. A
# sign whose argument is a function of sums wants the accumulators of these sums and becomes
# thresholds, if the sign changes once. Then nobody asks for what lies between the two, and what
# nobody asks for is not computed. Going forward again, each form that somebody wants becomes a
# *step*.
#
# The table shows each operation of the model, its kind, and the forms in which it was asked for.

# %%
packed = deploy.compile(model, images.shape[1:])

forms = {}
for step in packed.steps:
    forms.setdefault(step.call, []).append(step.layout)
for i, call in enumerate(calls):
    kind = kind_of.get(id(call.output), "constant")
    shape = " × ".join(map(str, call.output.shape[1:]))
    print(f"{i:2} {type(call.function).__name__:<10} {shape:<12} {kind:<9}", end=" ")
    print(", ".join(forms.get(i, ["-"])))

kind_by_call = [kind_of.get(id(call.output), "constant") for call in calls]
assert kind_by_call.count("signs") == 4 and kind_by_call.count("sums") == 4
vanished = [i for i in range(len(calls)) if i not in forms and kind_by_call[i] != "constant"]
assert "BatchNorm" in [type(calls[i].function).__name__ for i in vanished]

# %% [markdown]
# Where a dash stands beside an operation, it has disappeared: max-pool and batch norm between sums
# and signs are part of the thresholds.
#
# ### 10. Steps
#
# What is left is the program. A step is the name of an operation, numbers of earlier steps, and
# arrays. There is no code in it, so that a program can be saved as data.

# %%
print(packed)

# %% [markdown]
# Its thresholds are those that we found.

# %%
second, third = [step for step in packed.steps if step.operation == "threshold"][:2]
[pool] = [step for step in packed.steps if step.operation == "max_pool_bits"]

assert np.array_equal(second.arrays["thresholds"], t)
assert np.array_equal(pool.arrays["minimum"], falls)
assert np.array_equal(third.arrays["thresholds"], thresholds)
assert np.array_equal(third.arrays["flip"], flips)

# %% [markdown]
# And is the program right? `deploy.verify` traces the model on the given images, and compares the
# result of each step with the value that it stands for, with `==`.

# %%
compared = deploy.verify(model, packed, images)
print(f"{compared:,} values compared, all equal")

# %% [markdown]
# ### 11. The sums that remain floats
#
# Sums of signs are integers below $2^{24}$. float32 holds them exactly, and their order is of no
# importance. But the first layer sees pixels, and in many networks the last one has float weights.
# Their terms are real numbers, every addition rounds, and then the order matters:

# %%
big, small = np.float32(1e8), np.float32(1)
print("(big - big) + small =", (big - big) + small)
print("(big + small) - big =", (big + small) - big)

six = np.random.default_rng(0).normal(size=6).astype(np.float32)
totals = {np.cumsum(order, dtype=np.float32)[-1] for order in itertools.permutations(six)}
print(f"720 orders of six numbers: {len(totals)} different sums")

assert len(totals) > 1

# %% [markdown]
# With a thousand terms there are more. (`np.cumsum` adds one after the other.)

# %%
terms = np.random.default_rng(0).normal(size=1000).astype(np.float32)
shuffled = np.random.default_rng(1).permuted(np.tile(terms, (2000, 1)), axis=1)
totals = np.cumsum(shuffled, axis=1, dtype=np.float32)[:, -1]
exact = math.fsum(terms.tolist())
steps_off = (totals - exact) / np.spacing(np.float32(abs(exact)))

figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
axes.bar(*np.unique(steps_off, return_counts=True), color=plots.MINUS)
axes.axvline(0, color=plots.PLUS, linewidth=2, label="exact sum")
axes.set(xlabel="distance from the exact sum, in steps of float32", ylabel="orders")
axes.legend(frameon=False)
plt.show()

signs_of_terms = np.cumsum(np.sign(shuffled), axis=1, dtype=np.float32)[:, -1]
assert len(np.unique(signs_of_terms)) == 1  # sums of signs do not care

# %% [markdown]
# Which order does a matrix product take? A tuned library chooses by the size of the matrices, the
# number of threads and the processor. So one image alone can have other sums than the same image in
# a batch. Behind these sums stands a sign, and we know what one wrong bit does.
#
# The package therefore has *one* kernel for such sums, with one order: ascending $k$, each product
# rounded before it is added (no fused multiply-add, which would round once instead of twice). The
# float model in eval mode and the packed model both call it, and `fixed_order=True` asks for it.

# %%
rng = np.random.default_rng(2)
x, weight = rng.normal(size=(64, 1000)).astype("f4"), rng.normal(size=(10, 1000)).astype("f4")
alone = np.concatenate([row[None] @ weight.T for row in x])
print(f"NumPy, alone or in a batch: {(alone != x @ weight.T).sum()} of {alone.size} sums differ")

by_hand = np.zeros((64, 10), np.float32)
for k in range(1000):
    by_hand += x[:, k, None] * weight[None, :, k]
in_order = F.linear(x, weight, fixed_order=True)

assert np.array_equal(in_order, by_hand)
assert np.array_equal(
    np.concatenate([F.linear(row[None], weight, fixed_order=True) for row in x]), in_order
)

# %% [markdown]
# Our digits hide the problem: their pixels are multiples of 1/8, so even the first layer's sums are
# exact. Photographs, with the mean taken off and divided by a standard deviation, do not.
#
# What stands between such sums, like the batch norm at the end, works on each number by itself.
# There nothing is added up, and the same operations in the same order are enough.

# %% [markdown]
# ## Part four: the plan
#
# ### 12. Tasks
#
# `packed.run` carries out one step after the other. That is the reference, and what `verify` checks
# first. `packed.predict` is faster, because it carries out several steps in one call of a kernel: a
# *task*. `packed.tasks` lists them, and `covers` are the steps of each.

# %%
for task in packed.tasks:
    operations = ", ".join(packed.steps[i].operation for i in task.covers)
    print(f"steps {', '.join(map(str, task.covers)):<12} {operations}")

results = [sum(r.nbytes for _, r in run(images)) for run in (packed.run, packed.run_plan)]
print(f"bytes of all results: {results[0]:,} step by step, {results[1]:,} task by task")

assert results[1] < results[0]
assert sorted(i for task in packed.tasks for i in task.covers) == list(range(len(packed.steps)))

# %% [markdown]
# A product of signs and its thresholds are one task: the kernel compares the differences that it
# has just counted and writes bits, as in notebook 05. A sum is 32 bits and becomes one; the sums
# are never written.
#
# In the last task integers become floats and go through a batch norm. In the third, a batch norm of
# floats ends in bits. Such arithmetic on floats is the subject of the next pages.

# %% [markdown]
# ### 13. A residual block
#
# Networks with good accuracy add the input of a block to its output, as real numbers (Bi-Real Net).
# ReActNet adds two layers with learned values for each channel: *RSign*, the sign of $x - \alpha$,
# and *RPReLU*, which shifts, multiplies negative numbers by a slope, and shifts again. Then no
# integer threshold exists: before the sign, something real has been added.
#
# Here is a network of two such blocks. It is not trained, as the arithmetic is the same; its
# parameters are drawn at random, so that nothing is 0 or 1 by chance.


# %%
class Block(nn.Module):
    def __init__(self, channels, rng):
        self.sign = nn.RSign(channels)
        self.conv = nn.BinaryConv2d(
            channels, channels, 3, padding=1, input_quantizer=None, rng=rng
        )  # its input is signs already
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.RPReLU(channels)

    def forward(self, x):
        return self.act(self.norm(self.conv(self.sign(x))) + x)


rng = np.random.default_rng(3)
residual = nn.Sequential(
    nn.BinaryConv2d(1, 64, 3, padding=1, input_quantizer=None, rng=rng),
    nn.BatchNorm2d(64),
    Block(64, rng),
    Block(64, rng),
    nn.AvgPool2d(8),
    nn.Flatten(),
    nn.Linear(64, 10, rng=rng),
).eval()
for module in residual.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean[:] = rng.normal(0, 5, 64)
        module.running_var[:] = rng.uniform(100, 900, 64)
        module.weight.data[:] = rng.normal(1, 0.5, 64)
    if isinstance(module, nn.RSign):
        module.threshold.data[:] = rng.normal(0, 0.3, 64)
    if isinstance(module, nn.RPReLU):
        module.shift_in.data[:], module.shift_out.data[:] = rng.normal(0, 0.3, (2, 64))

packed_residual = deploy.compile(residual, images.shape[1:])
print(f"{deploy.verify(residual, packed_residual, images):,} values compared, all equal")
for task in packed_residual.tasks:
    operations = ", ".join(packed_residual.steps[i].operation for i in task.covers)
    print(f"-> {len(task.steps)} result(s): {operations}")

# %% [markdown]
# Look at the second task. It begins with the product of the first block, ends with the bits that
# the second block's convolution reads, and gives two results: these bits, and the floats that the
# second block will add. `to_float`, `batch_norm`, `add` (the residual), `sub`, `prelu`, `add`
# (RPReLU), `sub`, `pack` (RSign) are eight steps. One after the other in NumPy, each reads and
# writes the whole layer.

# %% [markdown]
# ### 14. A program for one pass
#
# What follows the product is a list of operations on each number by itself. It could be compiled
# for each network, but that takes seconds. Instead the list is *data*, for a small machine that one
# compiled kernel imitates: it has one accumulator, $v$, which is a block of 128 neighbouring
# numbers in registers, and each instruction does one operation to it.
#
# `pointwise.prepare` translates. Values are numbered: inputs first, then the result of each
# operation. An operand is the number of a value or a constant. This is the program of the second
# task:

# %%
block, following = residual[2], residual[3]
norm, act = block.norm, block.act
constants = {
    "mean": norm.running_mean,
    "scale": np.float32(1) / np.sqrt(norm.running_var + norm.eps),
    "gamma": norm.weight.data,
    "beta": norm.bias.data,
    "shift_in": act.shift_in.data,
    "slope": act.weight.data,
    "shift_out": act.shift_out.data,
    "alpha": following.sign.threshold.data,
}
arguments = (
    (8, 8, 64),  # height, width, channels
    ["sums", "floats"],  # values 0 and 1: the product's sums, and the block's input x
    [
        ("sub", 0, constants["mean"]),  # value 2
        ("mul", 2, constants["scale"]),
        ("mul", 3, constants["gamma"]),
        ("add", 4, constants["beta"]),
        ("add", 5, 1),  # the residual
        ("sub", 6, constants["shift_in"]),
        ("prelu", 7, constants["slope"]),
        ("add", 8, constants["shift_out"]),  # value 9: the block's output
        ("sub", 9, constants["alpha"]),  # value 10
    ],
    [("floats", 9), ("bits", 10)],
)
program = pointwise.prepare(*arguments)
print(program.code)

# %% [markdown]
# Each row is an instruction, a source and a number in that source. In words:

# %%
WORDS = {
    pointwise.LOAD: "v = {}",
    pointwise.ADD: "v = v + {}",
    pointwise.SUBTRACT: "v = v - {}",
    pointwise.MULTIPLY: "v = v * {}",
    pointwise.SLOPE: "v = v where v > 0, else v * {}",
    pointwise.SAVE: "{} = v",
    pointwise.STORE: "write v to the float output {}",
    pointwise.PACK: "write the bits v >= 0 to the bit output {}",
}
names = list(constants)  # in the order in which the operations use them
for instruction, source, number in program.code.tolist():
    operand = {
        pointwise.CHANNELS: f"{names[number]} of the channel",
        pointwise.SLOT: f"slot {number}",
        pointwise.FLOATS: "the block's input",
        pointwise.SUMS: "the sums",
    }.get(source)
    if instruction in (pointwise.STORE, pointwise.PACK):
        operand = str(number)
    print(WORDS[instruction].format(operand))

# %% [markdown]
# Is this the same as NumPy, operation by operation, and the same as the float model? Every
# instruction rounds as NumPy's operation does, and the compiler behind Numba is not allowed to
# contract a product and a sum. So we may ask for `==`.

# %%
with tb.no_grad():
    x = residual[1](residual[0](tb.Tensor(images)))
    output = block(x)
    next_signs = following.sign(output).data
    words = pack(block.sign(x).data.transpose(0, 2, 3, 1))

x = np.ascontiguousarray(x.data.transpose(0, 2, 3, 1))  # (N, H, W, C)
weight = pack(block.conv.binary_weight().transpose(0, 2, 3, 1))
product = xnor.prepare_conv2d(weight, 64, (8, 8), padding=(1, 1))
sums = xnor.run(product, words)


def in_numpy(sums, x):
    v = sums.astype(np.float32)
    v = v - constants["mean"]
    v = v * constants["scale"]
    v = v * constants["gamma"]
    v = v + constants["beta"]
    v = v + x
    v = v - constants["shift_in"]
    v = np.where(v > 0, v, v * constants["slope"])
    v = v + constants["shift_out"]
    return v, pack(v - constants["alpha"])


floats, bits = pointwise.run(program, [sums, x])
expected_floats, expected_bits = in_numpy(sums, x)

assert np.array_equal(floats, expected_floats) and np.array_equal(bits, expected_bits)
assert np.array_equal(floats, output.data.transpose(0, 2, 3, 1))
assert np.array_equal(unpack(bits, 64), next_signs.transpose(0, 2, 3, 1))

# %% [markdown]
# The last step is to join product and program. `kernels.floats.fused` makes the sums of a few
# pixels in memory that stays in the cache, lets the program turn them into floats and bits, and
# goes on with the next few pixels. An array of all sums does not exist. This is the task.


# %%
def shortest(function, *arguments, seconds=0.2):
    """Seconds that the fastest run takes; runs are repeated for this long, at least 3 times."""
    function(*arguments)
    times = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - begin)
    return min(times)


layer = fused.prepare([product, None], program)  # what makes each input; None: it is given
outputs = [np.empty_like(floats), np.empty_like(bits)]
task = fused.bind(layer, [words, x], outputs)  # checks and scratch memory once, for these arrays
task()

assert np.array_equal(outputs[0], floats) and np.array_equal(outputs[1], bits)
for name, function, *given in (
    ("product alone", xnor.run, product, words),
    ("what follows, in NumPy", in_numpy, sums, x),
    ("what follows, as a program", pointwise.run, program, [sums, x]),
    ("both, joined", task),
):
    print(f"{name:<28}{shortest(function, *given) * 1e3:8.3f} ms")
print(f"the array of sums would take {sums.nbytes:,} bytes")

# %% [markdown]
# The large step is from NumPy to the program: one pass instead of ten. Joining saves memory: the
# array of sums is neither kept nor moved. Whether that also saves time depends on how large the
# array is beside the caches, and on how many cores share the way to memory. On one core with a
# large cache the two calls may take as long as the joined one, or less.

# %% [markdown]
# ## Part five: file and clock
#
# ### 15. What is in the file
#
# A weight is one bit. Does the file agree? We count what each kind of array takes. A row of bits,
# that is a filter's tap or a row of a matrix, is stored as whole bytes; thresholds are 16-bit
# integers here, and flips a byte each.

# %%
counted = sum(
    module.weight.data.size
    for module in model.modules()
    if isinstance(module, nn.BinaryConv2d | nn.BinaryLinear)
)
sizes = {"weights": 0, "thresholds and flips": 0, "floats": 0}
for step in packed.steps:
    for name, array in step.arrays.items():
        if name in step.bits:  # rows of this many bits: words, or floats ±1 in the first layer
            count = step.bits[name]
            rows = array.size // (words_for(count) if array.dtype == np.uint64 else count)
            sizes["weights"] += rows * -(-count // 8)
        elif array.dtype == np.float32:
            sizes["floats"] += array.nbytes
        else:
            sizes["thresholds and flips"] += array.nbytes

on_disk = packed.save("digits.tbnn")
print(f"counted: {counted:,} weights of one bit, {counted / 8:,.0f} bytes")
for name, size in sizes.items():
    print(f"{name:<24}{size:8,} bytes")
print(f"{'description':<24}{on_disk - packed.nbytes:8,} bytes")
print(f"{'file':<24}{on_disk:8,} bytes")
as_floats = sum(array.nbytes for array in model.state_dict().values())
print(f"{'the model as floats':<24}{as_floats:8,} bytes")

assert sum(sizes.values()) == packed.nbytes
assert counted / 8 <= sizes["weights"] < 1.1 * counted / 8
assert np.array_equal(
    deploy.PackedModel.load("digits.tbnn").predict(images), packed.predict(images)
)

# %% [markdown]
# The *description* is the list of steps as text, with their settings, names and a checksum. Its
# length grows with the number of steps and not with that of the weights, so that in a small model
# it weighs a lot, and in a large one nothing.

# %% [markdown]
# ### 16. Where the time goes
#
# `profile` measures each task. *Products* are products of signs, and *of peak* is the share of what
# the processor could count if nothing had to be loaded (the flat roof of notebook 04).

# %%
profile = packed.profile(images, repetitions=20, threads=1)
for row in profile:
    operations = ", ".join(row["operations"])
    print(f"{operations:<34}{row['seconds'] * 1e6:8.0f} µs {row['share']:6.1%}", end="")
    print(f"{row['products'] / 1e6:8.1f} M, {row['peak_share']:4.0%} of peak" * (row["rate"] > 0))

# %% [markdown]
# And the float model? Its trace can be carried out again, call by call. The calls up to the one in
# which a task ends are the ones that the task replaces. Where a task ends in the middle of a call,
# because the thresholds are compared here and pooled there, we take it together with the next one.
# Products of signs are carried out on floats, by BLAS. The signs of the weights are left out: a
# float program would compute them once. Of both sides the shortest of many runs counts.

# %%
x = tb.Tensor(images)
with tb.no_grad(), trace() as calls:
    model(x)


def seconds_of(call):
    inputs = [t.data if isinstance(t, tb.Tensor) else t for t in call.inputs]
    operation, options = type(call.function), call.options
    if operation in (F.SignConv2d, F.SignLinear):
        inputs[1] = options["quantizers"][1].forward(inputs[1])
        operation = F.Conv2d if operation is F.SignConv2d else F.Linear
        options = {k: v for k, v in options.items() if k in ("geometry", "fixed_order")}
    return shortest(lambda: operation.apply(*inputs, **options), seconds=0.05)


depends = kinds(calls, x)
float_times = [seconds_of(call) if id(call.output) in depends else 0.0 for call in calls]
runs = [packed.profile(images, repetitions=1, threads=1) for _ in range(20)]
packed_times = [min(row["seconds"] for row in rows) for rows in zip(*runs, strict=True)]

parts = []  # operations, seconds packed, seconds float
operations, seconds, first = [], 0.0, 0
for task, time_of_task in zip(packed.tasks, packed_times, strict=True):
    operations += [packed.steps[i].operation for i in task.covers]
    seconds += time_of_task
    last = packed.steps[task.covers[-1]].call
    if last >= 0:  # -1: no call of the float model ends here
        parts.append((", ".join(operations), seconds, sum(float_times[first : last + 1])))
        operations, seconds, first = [], 0.0, last + 1

names, times_packed, times_float = zip(*parts, strict=True)
print(f"float {sum(times_float) * 1e3:.2f} ms, packed {sum(times_packed) * 1e3:.2f} ms")

# %%
figure, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
places = np.arange(len(names))
axes.barh(places - 0.2, np.array(times_float) * 1e6, 0.4, color=plots.MINUS, label="float")
axes.barh(places + 0.2, np.array(times_packed) * 1e6, 0.4, color=plots.PLUS, label="packed")
axes.set_yticks(places, names)
axes.invert_yaxis()
axes.set(xscale="log", xlabel=f"µs for {len(images)} images, one core")
axes.legend(frameon=False)
axes.grid(axis="x", color="0.92")
axes.set_axisbelow(True)
plt.show()

# %% [markdown]
# The first three rows are about the same work on both sides, as the first layer's sums are floats
# either way. The products of signs are the rows that gain most. Rows with few products, like the
# last one, gain nothing and can lose: there the handling of each image outweighs the work.
#
# That changes what is worth working on. The first layer, a small part of the operations, now takes
# a large part of the time, and the next improvement has to be made there. This is Amdahl's law.

# %% [markdown]
# ## Exercises
#
# 1. Add `F.abs(...)` and a subtraction of 1 between the batch norm and the sign of a layer. How
#    often does the sign change now? Predict which steps the compiled model has there, then look. Is
#    it still exact? *Hint:* write a module whose forward is `F.abs(self.norm(x)) - 1.0`, put it
#    into a `Sequential` between two binary layers, and give it random statistics.
# 2. Change one threshold of the packed model by 1 and call `deploy.verify`. What does the message
#    say? How many images have other logits, and is the accuracy another? *Hint:* load the file of
#    section 15, so that no plan has been made yet, and change an array of a step.
# 3. XNOR-Net multiplies each sum by the mean magnitude of the filter's weights, `scale="mean"`.
#    Where are these factors in the packed model of a network with batch norm? Predict, and compare
#    the sizes of the files with and without. *Hint:* what is the function of one integer now?
# 4. Take the parameters of section 3 that are round numbers, and compute $t$ in float64 with
#    $\varepsilon = 0$. Is it better or worse than with it? Can you find parameters for which the
#    opposite is true? *Hint:* compare `np.float32(256) + np.float32(1e-5)` and `np.float32(16) +
#    np.float32(1e-5)`.

# %% [markdown]
# ## Sources
#
# - Y. Umuroglu et al.: *FINN* (2017), arXiv:1612.07119: batch norm and sign as a threshold,
#   max-pool as OR.
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016), arXiv:1602.02830.
# - S. Ioffe, C. Szegedy: *Batch Normalization* (2015), arXiv:1502.03167.
# - Z. Liu et al.: *Bi-Real Net* (2018), arXiv:1808.00278: real-valued residuals.
# - Z. Liu et al.: *ReActNet* (2020), arXiv:2003.03488: RSign and RPReLU.
# - M. Rastegari et al.: *XNOR-Net* (2016), arXiv:1603.05279: scaled sums.
# - D. Goldberg: *What Every Computer Scientist Should Know About Floating-Point Arithmetic*, ACM
#   Computing Surveys 23(1) (1991): rounding, and the order of additions.
