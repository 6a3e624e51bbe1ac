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
# # Depth-wise convolutions and 1.58 bits
#
# **You will learn** why the layer that makes mobile networks small is the one that resists
# binarization; what BD-Net does about it: a convolution with three levels and a shortcut in front
# of the batch norm; and why a network with a twenty-eighth of the operations is not 28 times as
# fast.
#
# **You need** notebooks 05 (depth-wise convolutions on bits) and 06 (compiling). Reading takes
# about twenty-five minutes, running half a minute.
#
# The paper is *BD-Net: Has Depth-Wise Convolution Ever Been Applied in Binary Neural Networks?*
# Equations and figures are named by its numbers. Times are those of the machine that ran the
# notebook.

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # NumPy on one core

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cbook import get_sample_data

from tinybnn import Tensor, analysis, deploy, models, nn, plots
from tinybnn.experiments import bdnet

rng = np.random.default_rng(0)

# %% [markdown]
# ## Part one: why it resists
#
# ### 1. What there is to gain
#
# A regular convolution mixes all channels: each output is a sum over $k^2 C$ products. A depth-wise
# convolution keeps them apart: $k^2$ products, whatever $C$ is. MobileNets use it for everything
# spatial and mix channels with cheap 1 × 1 convolutions. Operations are counted as
# OPs = BOPs / 64 + FLOPs: 64 products of signs, a word, count as one product of floats. Here is a
# layer of 128 channels on 56 × 56 pixels.

# %%
C, SIZE = 128, 56
layers = {
    "real, regular": nn.Conv2d(C, C, 3, padding=1, bias=False),
    "real, depth-wise": nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False),
    "binary, regular": nn.BinaryConv2d(C, C, 3, padding=1),
    "binary, depth-wise": nn.BinaryDepthwiseConv2d(C, 3, padding=1),
}
ops = {}
for name, layer in layers.items():
    ops[name] = analysis.count_operations(layer, (C, SIZE, SIZE)).ops
    print(f"{name:<20}{ops[name]:>14,.0f}")

assert ops["real, depth-wise"] < ops["binary, regular"]

# %% [markdown]
# That is the paper's Table 1. Look at the two in the middle: binarizing a regular convolution saves
# less than keeping floats and going depth-wise. Binary networks that replace the depth-wise layers
# of a MobileNet by regular binary ones, as ReActNet does, therefore have *more* operations there
# than the float network they come from. The gain is in the last line.

# %% [markdown]
# ### 2. Few terms make a coarse sum
#
# A sum of $T$ random signs has variance $T$. Behind it a batch norm divides by $\sqrt T$. The sum
# moves in steps of 2: one sign that flips moves the normalised output by $2/\sqrt T$ standard
# deviations. For a regular layer $T = 9 C$, for a depth-wise one $T = 9$.

# %%
samples = 20_000
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
for axes, name, terms in ((left, "depth-wise", 9), (right, "regular", 9 * C)):
    sums = 2 * rng.binomial(terms, 0.5, samples) - terms
    values, counts = np.unique(sums, return_counts=True)
    axes.bar(values / np.sqrt(terms), counts / samples, 1.8 / np.sqrt(terms), color=plots.MINUS)
    axes.set(title=f"{name}: {terms:,} terms", xlabel="sum / standard deviation")
    print(f"{name:<12}{len(values):>4} values, a flipped sign moves it by {2 / np.sqrt(terms):.2f}")
left.set(ylabel="share", xlim=(-4, 4))
right.set(xlim=(-4, 4))
plt.show()

# %% [markdown]
# Ten values in all, and one flipped weight moves every output of the channel by two thirds of a
# standard deviation. In a regular layer it is a twentieth, and there are 1,152 weights whose flips
# partly cancel. In a depth-wise channel there are nine, and $2^9 = 512$ filters in the world. This
# is what the paper means by few parameters and little representational capacity.

# %% [markdown]
# ### 3. The variance
#
# The signs that come in are not fair coins. If a channel is +1 with probability $p$, one sign has
# the variance $4 p (1 - p)$, which is small when the channel is nearly constant. A regular layer
# averages this over its input channels. A depth-wise layer can't: each of its outputs stands on one
# channel alone. Let $p$ differ from channel to channel.

# %%
p = rng.uniform(0.02, 0.98, C)  # of each input channel
one_sign = 4 * p * (1 - p)
depthwise_variance = 9 * one_sign  # of the sum, for each output channel
regular_variance = np.full(C, 9 * one_sign.sum())

for name, variance in (("depth-wise", depthwise_variance), ("regular", regular_variance)):
    alpha = 1 / np.sqrt(variance / variance.mean())
    print(
        f"{name:<12}factor of the batch norm, as multiples of the mean's: "
        f"{alpha.min():.2f} to {alpha.max():.2f}"
    )

assert depthwise_variance.max() / depthwise_variance.min() > 5

# %% [markdown]
# The batch norm computes $y = \alpha (x - \mu) + \beta$ with $\alpha = \gamma / \sqrt{\sigma^2 +
# \epsilon}$ (Eq. 1), and on the way back it multiplies the gradient by the same $\alpha$. Where a
# channel's variance comes near zero, $\alpha$ becomes large, the gradient with it, and since the
# variance of a nearly constant channel hangs on a few pixels, both jump from batch to batch.
#
# We assumed independent signs. Neighbouring pixels are alike, which makes it worse for some filters
# and better for others: on a flat region all nine signs are equal, and the sum is the constant sum
# of the weights.

# %% [markdown]
# ### 4. Measured in a network
#
# `bdnet.layer_statistics` looks at each layer with more than one tap: the variance of what comes
# into its batch norm, the factor $\alpha$, and the gradients of its weights for several batches.
# Their *agreement* is 1 where all batches pull in the same direction and 0 where they have nothing
# in common. Four MobileNets V1 of a quarter of the width, not trained yet, on digits enlarged to
# 32 × 32 pixels:

# %%
train, _ = bdnet.load("digits", 256)
batches = [
    (train.images[i : i + 64] / np.float32(8) - 1, train.labels[i : i + 64])
    for i in range(0, 256, 64)
]
config = bdnet.Config()
measured = {}
for arm in bdnet.ABLATION.values():
    network = arm.network(config, (1, 32, 32), 10, np.random.default_rng(0))
    measured[arm.title] = bdnet.layer_statistics(network, batches)

print(
    f"{'medians over 13 layers':<24}{'variance':>9}{'factor':>8}{'gradient':>10}{'agreement':>11}"
)
for title, rows in measured.items():
    variance, factor = (np.median([row[key][1] for row in rows]) for key in ("variance", "factor"))
    gradient, agreement = (
        np.median([row[key] for row in rows]) for key in ("gradient", "agreement")
    )
    print(f"{title:<24}{variance:>9.2f}{factor:>8.2f}{gradient:>10.3f}{agreement:>11.2f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for axes, key, label in (
    (left, "factor", "factor of the batch norm"), (right, "agreement", "agreement of gradients"),
):  # fmt: skip
    lines = {
        title: [row[key][1] if key == "factor" else row[key] for row in rows]
        for title, rows in measured.items()
    }
    plots.curves(lines, label, "depth-wise layer", ax=axes)
plt.show()

factors = {title: np.median([row["factor"][1] for row in rows]) for title, rows in measured.items()}
assert factors["+ pre-BN"] < factors["naive"] and factors["both: BD-Net-A"] < factors["naive"]

# %% [markdown]
# The naive network's variances are *not* near zero here: our layer multiplies its sums by a learned
# scale that starts at $1/\sqrt{9}$, so the variance starts somewhat below 1. What the batch norm
# divides out is one and the same for any scale. So read the factor together with the scale, and do
# not expect the paper's wording to appear as a number. What does appear: with the shortcut in front
# of the batch norm the variance is that of the real-valued input, the factor is several times
# smaller, and the gradients of different batches agree more. Parts two and three explain both of
# BD-Net's remedies.

# %% [markdown]
# ## Part two: three levels
#
# ### 5. What one boundary loses
#
# Before formulas, a picture (the paper's Figure 4). One bit a pixel, at the best threshold there is
# (Otsu's: the variance between both classes is largest), against three levels at the best two.

# %%
photo = plt.imread(get_sample_data("grace_hopper.jpg"))  # (H, W, 3) uint8
gray = bdnet.to_gray(photo.transpose(2, 0, 1)[None])[0]
levels = {"grey": gray / 255, "one bit": bdnet.to_levels(gray, 2)}
levels["three levels"] = bdnet.to_levels(gray, 3)

figure, places = plt.subplots(1, 3, figsize=(8, 3.6), layout="constrained")
for axes, (title, picture) in zip(places, levels.items(), strict=True):
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], title=title)
plt.show()
print("thresholds:", bdnet.otsu(gray, 2), "and", bdnet.otsu(gray, 3))

assert [len(np.unique(picture)) for picture in levels.values()][1:] == [2, 3]

# %% [markdown]
# ### 6. Equation 11
#
# More bits a value are not to be had in a binary network: its kernels multiply signs. But two
# binary convolutions side by side are. Each has a *rounding boundary* $\alpha_i$ of its own and an
# *output value* $\beta_i$ of its own, and their results are added. For one tap with weights +1:
#
# $$f(x) = \beta_1 \operatorname{sign}(x - \alpha_1) + \beta_2 \operatorname{sign}(x - \alpha_2).$$
#
# Go through the cases for $\alpha_1 \le \alpha_2$. Below both boundaries both signs are -1. Between
# them the first is +1, the second -1. Above both, both are +1:
#
# $$f(x) = \begin{cases} -\beta_1 - \beta_2 & x < \alpha_1 \\ \beta_1 - \beta_2 & \alpha_1 \le x <
# \alpha_2 \\ \beta_1 + \beta_2 & \alpha_2 \le x. \end{cases}$$
#
# Three levels from operations on bits: $\log_2 3 \approx 1.58$ bits.


# %%
def equation_11(x, a1, a2, b1, b2):
    return np.where(x < a1, -b1 - b2, np.where(x < a2, b1 - b2, b1 + b2)).astype(np.float32)


def one_tap(boundaries, values, signs):
    """A 1.58-bit convolution with one channel and one tap."""
    layer = nn.DualBinaryConv2d(1, 1, 1, branches=len(values))
    for branch, boundary, value, sign in zip(
        layer.branches, boundaries, values, signs, strict=True
    ):
        branch[0].threshold.data[...] = boundary
        branch[1].scale.data[...] = value
        branch[1].weight.data[...] = sign
    return lambda x: layer.eval()(Tensor(x.reshape(1, 1, 1, -1))).data.ravel()


x = np.linspace(-1.5, 1.5, 601, dtype=np.float32)
boundaries, values = (-0.5, 0.4), (0.6, 0.3)
function = one_tap(boundaries, values, (1, 1))

assert np.array_equal(function(x), equation_11(x, *np.float32(boundaries), *np.float32(values)))

# %% [markdown]
# Both branches have weights of their own, too (that is our reading of "two binary convs in
# parallel"; the paper's code could not be read). With $\operatorname{sign}(w_1) = +1$ and
# $\operatorname{sign}(w_2) = -1$ the middle becomes the highest level: a function that is not
# monotone, which no single sign can be.

# %%
figure, places = plt.subplots(1, 4, figsize=(9, 2.3), sharey=True, layout="constrained")
for axes, signs in zip(places, ((1, 1), (-1, -1), (1, -1), (-1, 1)), strict=True):
    axes.step(x, one_tap(boundaries, values, signs)(x), where="post", color=plots.MINUS)
    axes.set(title=f"signs of the weights {signs}", xlabel="x")
    axes.title.set_fontsize("small")
plt.show()

assert one_tap(boundaries, values, (1, -1))(np.float32([-1, 0, 1])).argmax() == 1

# %% [markdown]
# ### 7. What it buys, and what it costs
#
# Count for the nine taps of a depth-wise channel: how many different values can an output take? One
# branch: ten. Two with output values that are no simple multiples of each other: up to a hundred.
# And there are $2^{18}$ pairs of filters instead of $2^9$ filters. In operations it is twice a very
# small number.

# %%
one = np.arange(-9, 10, 2)
pairs = np.unique(np.round(0.6 * one[:, None] + 0.37 * one[None, :], 6))
print("values of an output:", len(one), "and", len(pairs))

count = {}
for arm in bdnet.ABLATION.values():
    network = arm.network(bdnet.Config(width=1.0), (3, 32, 32), 10, np.random.default_rng(0))
    count[arm.title] = analysis.count_operations(network, (3, 32, 32)).ops
    print(f"{arm.title:<18}{count[arm.title] / 1e6:8.4f} million OPs in the whole network")

assert len(pairs) == 100
assert count["+ 1.58-bit"] / count["naive"] < 1.02

# %% [markdown]
# ## Part three: the shortcut in front of the batch norm
#
# ### 8. Two shortcuts
#
# Binary networks have a shortcut around convolution *and* batch norm (Bi-Real Net): $y =
# \operatorname{BN}(\operatorname{conv}(x)) + x$. In the Jacobian the batch norm is the factor
# $\alpha$, and the convolution a matrix $J_\text{dw}$ (Eq. 3); BD-Net adds $x$ in front of the
# batch norm as well (Eq. 4):
#
# $$J = \alpha J_\text{dw} + I, \qquad J' = \alpha (J_\text{dw} + I) + I = \alpha J_\text{dw} +
# (\alpha + 1) I.$$
#
# The claim is about the condition number, the ratio of the largest to the smallest singular value:
# how differently the layer stretches different directions. It is at its best, 1, for a multiple of
# the identity. If $\alpha$ is large, $I$ is nothing beside $\alpha J_\text{dw}$; but $(\alpha + 1)
# I$ grows along with it.
#
# The paper argues with eigenvalues and an approximation (Eqs. 5 to 10). A depth-wise filter on a
# small image is a matrix that we can write down, so let's compute instead.


# %%
def jacobian(filter, size):
    """The matrix of a 3 × 3 convolution of one channel with padding 1: (size², size²)."""
    matrix = np.zeros((size, size, size, size))
    for y in range(size):
        for x in range(size):
            for i in range(3):
                for j in range(3):
                    row, column = y + i - 1, x + j - 1
                    if 0 <= row < size and 0 <= column < size:
                        matrix[y, x, row, column] = filter[i, j]
    return matrix.reshape(size * size, size * size)


def condition(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    return values[0] / values[-1]


identity = np.eye(64)
filters = [jacobian(rng.choice([-1.0, 1.0], (3, 3)) / 3, 8) for _ in range(60)]
print("factor   median condition number        smaller with pre-BN")
for alpha in (0.1, 0.33, 1.0, 3.0, 10.0):
    found = np.array(
        [
            (condition(alpha * J + identity), condition(alpha * J + (alpha + 1) * identity))
            for J in filters
        ]
    )
    without, having = np.median(found, axis=0)
    share = np.mean(found[:, 1] < found[:, 0])
    print(f"{alpha:6.2f}   {without:8.2f} without{having:8.2f} with{share:12.0%} of the filters")
    assert having < without

# %% [markdown]
# The claim holds in the median for every factor, and the gain is the larger the larger $\alpha$ is,
# as the paper says. It does not hold for every filter: its argument takes eigenvalues as positive,
# and a filter of signs has negative ones, which adding $\alpha$ can bring *closer* to zero.
#
# There is a second effect, which Eq. 4 hides because it writes the same $\alpha$ twice. The
# shortcut also changes what the batch norm sees: sums of a few signs *plus a real value*. Its
# variance is no longer that of ten coarse steps, and the factor is smaller (section 4). A layer of
# the package, with both shortcuts, against the formula:

# %%
how = models.blocks.make_method("tutorial", "bdnet-a")
layer = how.spatial(4, 3, rng=np.random.default_rng(0)).train()
layer(Tensor(rng.standard_normal((16, 4, 8, 8), np.float32)))  # the batch norm's statistics
layer.eval()
image = rng.standard_normal((1, 4, 8, 8), np.float32)

norm = layer.norm
alpha = (norm.weight.data / np.sqrt(norm.running_var + norm.eps)).reshape(4, 1, 1)
mean, shift = (v.reshape(4, 1, 1) for v in (norm.running_mean, norm.bias.data))
sums = layer.conv(Tensor(image)).data
by_hand = alpha * (sums + image - mean) + shift + image

assert layer.pre_bn and np.allclose(layer(Tensor(image)).data, by_hand, atol=1e-5)

# %% [markdown]
# ## Part four: operations are not milliseconds
#
# ### 9. Counted and measured
#
# Whole networks at full width on one image of 32 × 32 pixels: operations as papers count them, and
# the milliseconds of our packed network on one thread. (`tinybnn bench models` measures the same
# carefully, beside PyTorch.)


# %%
def shortest(function, *arguments, runs=12, **options):
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        function(*arguments, **options)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


image = rng.standard_normal((1, 3, 32, 32), np.float32)
packed, counted = {}, {}
for method in ("float", "reactnet", "bdnet-b", "bdnet-a"):
    network = models.mobilenet_v1(1.0, 32, 10, method, rng=np.random.default_rng(0)).eval()
    counted[method] = analysis.count_operations(network, (3, 32, 32))
    packed[method] = deploy.compile(network, (3, 32, 32))
    seconds = shortest(packed[method].predict, image, threads=1)
    print(
        f"{method:<10}{counted[method].ops / 1e6:8.2f} million OPs{seconds * 1e3:8.2f} ms"
        f"{packed[method].nbytes / 1e6:8.2f} MB"
    )

assert counted["float"].ops / counted["bdnet-a"].ops > 25

# %% [markdown]
# BD-Net-A has a twenty-eighth of the float network's operations. Nothing like it shows in the
# milliseconds. The profile says where they go. First, which tasks count bits at all, and how fast
# against what the registers could count:

# %%
rows = packed["bdnet-a"].profile(image, repetitions=12, threads=1)
groups = {}
for row in rows:
    kind = "other float operations"
    if "xnor_conv2d" in row["operations"]:
        kind = "depth-wise" if ".branches." in row["layer"].split(" + ")[0] else "1 × 1"
        kind += " with its float epilogue"
    elif "conv2d" in row["operations"] or "linear" in row["operations"]:
        kind = "real first and last layer"
    elif {"avg_pool2d", "take_channels"} & set(row["operations"]):
        kind = "shortcuts: average, replicate"
    seconds, products = groups.get(kind, (0.0, 0))
    groups[kind] = seconds + row["seconds"], products + row["products"]

whole = sum(seconds for seconds, _ in groups.values())
for kind, (seconds, products) in sorted(groups.items(), key=lambda item: -item[1][0]):
    print(f"{kind:<34}{seconds * 1e3:7.3f} ms{seconds / whole:6.0%}{products / 1e6:9.1f} Mbit-MAC")

assert sum(products for _, products in groups.values()) == counted["bdnet-a"].bops

# %% [markdown]
# Two things are not in the count. A shortcut is real-valued, so after each binary layer there are
# scale, addition, batch norm, addition, activation and comparison *in floats*, for every value; OPs
# do not count them. (In a depth-wise layer they are most of the work: nine products of signs are a
# seventh of an operation, and a dozen float operations follow.) And each of the forty-odd tasks is
# so small that starting it takes a time of its own. Counted operations rank networks of the same
# kind. They do not predict milliseconds.
#
# ### 10. And the accuracy?
#
# Training takes longer than a notebook should:
#
#     tinybnn reproduce bdnet-ablation --quick                  # the whole chain on digits, minutes
#     TINYBNN_DATA=DIR tinybnn reproduce bdnet-ablation         # Table 6 on CIFAR-10, hours
#     TINYBNN_DATA=DIR tinybnn reproduce bdnet-table2           # accuracy, operations, milliseconds
#
# Each writes a report with differences paired by seed, and the statistics of section 4 at the start
# and at the end of training. At a quarter of the width, 20 epochs on CIFAR-10, mean of three seeds
# ([report](../tinybnn/experiments/results/bdnet-ablation/report.md)):
#
# | | test accuracy | against naive | the paper, CIFAR-100, full width |
# |---|---|---|---|
# | naive | 61.95% | | |
# | + 1.58-bit convolution (section 5) | 63.29% | +1.34 | +1.24 |
# | + shortcut before the batch norm (section 8) | 68.69% | +6.74 | +1.99 |
# | both | 69.91% | +7.96 | +3.34 |
#
# The order is the paper's. The shortcut is most of the gain, and costs an addition.

# %% [markdown]
# ## Exercises
#
# 1. Build the convolution with three branches ($N = 3$) by `one_tap` and draw it. How many levels
#    does it have, and how many bits are that? *Hint:* boundaries at -0.5, 0 and 0.5.
# 2. In section 8, which filters are worse off with the pre-BN shortcut? Print the eigenvalues
#    (`np.linalg.eigvals`) of one of them for $\alpha = 3$. *Hint:* look for real parts of
#    $\alpha J_\text{dw}$ near $-(\alpha + 1)$ and near $-1$.
# 3. Repeat section 4 with `base="adabin"` in `bdnet.Config`, and for ReActNet
#    (`bdnet.TABLE_2["reactnet"]`), whose layers are regular. Does the agreement of the gradients
#    separate regular from depth-wise?
# 4. Predict from section 9 what a batch of 64 changes for "starting takes a time of its own", then
#    measure it with `packed["bdnet-a"].profile`.

# %% [markdown]
# ## Sources
#
# - D. Kim et al.: *BD-Net: Has Depth-Wise Convolution Ever Been Applied in Binary Neural Networks?*
#   (2025), arXiv:2511.17633.
# - Z. Liu et al.: *ReActNet* (2020), arXiv:2003.03488; *Bi-Real Net* (2018), arXiv:1808.00278.
# - Z. Tu et al.: *AdaBin* (2022), arXiv:2208.08084.
# - A. Howard et al.: *MobileNets* (2017), arXiv:1704.04861.
# - T. Sheng et al.: *A Quantization-Friendly Separable Convolution for MobileNets* (2018),
#   arXiv:1803.08607: batch norm and channels of zero variance.
# - N. Otsu: *A Threshold Selection Method from Gray-Level Histograms* (1979).
