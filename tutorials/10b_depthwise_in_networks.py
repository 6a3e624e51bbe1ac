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
# # Depth-wise layers in networks: gradients and milliseconds
#
# **You will learn** what goes wrong when a network of depth-wise layers of signs is trained, what
# BD-Net's shortcut does to it, and why a network with a twenty-eighth of the operations is not 28
# times as fast.
#
# **You need** [10](10_depthwise_and_158_bit.ipynb), which explains the layer and its shortcut, and
# for the last part the compiler of [06b](06b_the_compiler.ipynb). Nothing later needs this
# notebook.
#
# **Time** about 11 minutes of reading; the cells run for about half a minute.
#
# Equations are named by their numbers in the BD-Net paper. Times are those of the machine that ran
# the notebook.

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # NumPy on one core

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cbook import get_sample_data

from tinybnn import Tensor, analysis, deploy, models, plots
from tinybnn.experiments import bdnet

rng = np.random.default_rng(0)

# %% [markdown]
# ## The question
#
# In 10 a depth-wise channel that is nearly constant had a batch norm whose factor jumps from batch
# to batch. That was one channel, made for the purpose. **Is it so in a network, does the shortcut
# help there, and are networks of few operations fast?**
#
# For a start the 128 channels of one layer. Let channel $c$ be +1 with a probability $p_c$ of its
# own:

# %%
C = 128
p = rng.uniform(0.02, 0.98, C)  # of each input channel
one_sign = 4 * p * (1 - p)  # the variance of a sign
print(f"variance of a sign: {one_sign.min():.2f} to {one_sign.max():.2f}")

assert one_sign.min() < 0.2 and one_sign.max() > 0.98

# %% [markdown]
# ## The naive version
#
# The naive version of the theory: signs are independent, so variances add. A regular output adds up
# the signs of all channels, nine taps each, a depth-wise one those of its own channel.

# %%
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
# In the regular layer all channels have the same factor. In the depth-wise one the gradients of
# some channels are multiplied by three times as much as those of others.
#
# But signs of neighbouring pixels are alike. That makes it worse for some filters and better for
# others: on a flat region all nine signs are equal, and the sum is the constant sum of the weights.
# So measure it.
#
# ## Four networks at the start
#
# `bdnet.layer_statistics` looks at each layer with more than one tap: the variance of what comes
# into its batch norm, the factor $\alpha$, and the gradients of its weights for several batches.
# Their *agreement* is 1 where all batches pull in the same direction and 0 where they have nothing
# in common. Four MobileNets V1 of a quarter of the width, not trained yet, on digits enlarged to
# 32 × 32 pixels. (Variance and factor are medians over the channels of a layer; *+ pre-BN* has the
# shortcut in front of the batch norm, *BD-Net-A* also 1.58-bit weights.)

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
agreements = {
    title: np.median([row["agreement"] for row in rows]) for title, rows in measured.items()
}
assert factors["+ pre-BN"] < factors["naive"] and factors["both: BD-Net-A"] < factors["naive"]
assert agreements["+ pre-BN"] > agreements["naive"]

# %% [markdown]
# The paper speaks of variances near zero. The naive network's are *not* near zero here: our layer
# multiplies its sums by a learned scale that starts at $1/\sqrt{9}$, so the variance starts
# somewhat below 1, and the factor, its inverse root, somewhat above 1. What does appear: with the
# shortcut in front of the batch norm the variance is mostly that of the real-valued input, the
# factor and with it the gradient are several times smaller, and the gradients of different batches
# agree more. (The 1.58-bit weights alone do not help here.)
#
# ## The better version: both shortcuts
#
# A layer with the shortcut of Bi-Real Net is $y = \operatorname{BN}(\operatorname{conv}(x)) + x$.
# How does its output answer a small change of its input? That is the Jacobian, the matrix of all
# slopes. In it the batch norm is the factor $\alpha$, the convolution a matrix $J_\text{dw}$ (with
# the estimator's slopes, here 1), and the shortcut the identity $I$ (Eq. 3). BD-Net adds $x$ in
# front of the batch norm as well (Eq. 4):
#
# $$J = \alpha J_\text{dw} + I, \qquad J' = \alpha (J_\text{dw} + I) + I = \alpha J_\text{dw} +
# (\alpha + 1) I.$$
#
# The paper's claim is about the *condition number*, the ratio of the largest to the smallest
# singular value: how differently the layer stretches different directions. It is at its best, 1,
# for a multiple of the identity. If $\alpha$ is large, $I$ is nothing beside $\alpha J_\text{dw}$;
# but $(\alpha + 1) I$ grows along with it.
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
# The claim holds in the median for every factor, and the gain is large where $\alpha$ is large, as
# the paper says. It does not hold for every filter. Its argument takes eigenvalues as positive, and
# a filter of signs has negative ones, which adding $\alpha$ can bring *closer* to zero.
#
# There is a second effect, which Eq. 4 hides because it writes the same $\alpha$ twice. The
# shortcut also changes what the batch norm sees: sums of a few signs *plus a real value*. Its
# variance is no longer that of ten coarse steps, and the factor is smaller, as measured above.
#
# ## A picture of three levels
#
# The other remedy is three levels in place of two. The paper's Figure 4 shows what they keep of an
# image: one bit a pixel at the best threshold there is (Otsu's: the variance between both classes
# is largest), against three levels at the best two.

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
# ## Measured
#
# Whole networks at full width on one image of 32 × 32 pixels: operations as papers count them, and
# the milliseconds of our packed network on one thread. BD-Net-B is BD-Net-A with real depth-wise
# layers where they halve the image. `tinybnn bench models` measures the same carefully, beside
# PyTorch.


# %%
def shortest(function, *arguments, runs=12, **options):
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        function(*arguments, **options)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


image = rng.standard_normal((1, 3, 32, 32), np.float32)
packed, counted, fastest = {}, {}, {}
for method in ("float", "reactnet", "bdnet-b", "bdnet-a"):
    network = models.mobilenet_v1(1.0, 32, 10, method, rng=np.random.default_rng(0)).eval()
    counted[method] = analysis.count_operations(network, (3, 32, 32))
    packed[method] = deploy.compile(network, (3, 32, 32))
    seconds = fastest[method] = shortest(packed[method].predict, image, threads=1)
    print(
        f"{method:<10}{counted[method].ops / 1e6:8.2f} million OPs{seconds * 1e3:8.2f} ms"
        f"{packed[method].nbytes / 1e6:8.2f} MB"
    )

assert counted["float"].ops / counted["bdnet-a"].ops > 25
assert fastest["float"] / fastest["bdnet-a"] < 14

# %% [markdown]
# BD-Net-A has a twenty-eighth of the float network's operations. Nothing like it shows in the
# milliseconds. The profile says where they go: the time of each kind of task, its share, and how
# many products of bits it counts. (An *epilogue* is what follows a product in the same task.)

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
# ## In the package
#
# [`experiments/bdnet`](../tinybnn/experiments/bdnet) trains these networks, and writes differences
# paired by seed and the statistics above, at the start and at the end of training:
#
#     tinybnn reproduce bdnet-ablation --quick                  # the whole chain on digits, minutes
#     TINYBNN_DATA=DIR tinybnn reproduce bdnet-ablation         # Table 6 on CIFAR-10, hours
#     TINYBNN_DATA=DIR tinybnn reproduce bdnet-table2           # accuracy, operations, milliseconds
#
# The networks are [`models.mobilenet_v1`](../tinybnn/models), packed by
# [`deploy.compile`](../tinybnn/deploy/compiler.py). A packed network must give exactly the float
# network's scores; here at an eighth of the width, which the float network computes quickly:

# %%
small = models.mobilenet_v1(0.125, 32, 10, "bdnet-a", rng=np.random.default_rng(0)).eval()
by_words = deploy.compile(small, (3, 32, 32)).predict(image)

assert np.array_equal(by_words, small(Tensor(image)).data)

# %% [markdown]
# ## Summary
#
# In an untrained network of depth-wise layers of signs, a shortcut in front of the batch norm makes
# the norm's factors several times smaller, and gradients of different batches agree more. It
# improves the condition number of most filters, not of all. Operations counted as in papers leave
# out the floats of the shortcuts and the start of each task: a twenty-eighth of them is not a
# twenty-eighth of the time.

# %% [markdown]
# ## Exercises
#
# The exercises that check themselves are those of [10](10_depthwise_and_158_bit.ipynb). Think
# about:
#
# 1. Which filters are worse off with the shortcut in front of the norm? Print the eigenvalues
#    (`np.linalg.eigvals`) of one of them for $\alpha = 3$. *Hint:* look for real parts of $\alpha
#    J_\text{dw}$ near $-(\alpha + 1)$ and near $-1$.
# 2. Repeat the statistics with `base="adabin"` in `bdnet.Config`, and for ReActNet
#    (`bdnet.TABLE_2["reactnet"]`), whose layers are regular. Does the agreement of the gradients
#    separate regular from depth-wise?
# 3. Predict what a batch of 64 changes for "starting takes a time of its own", then measure it with
#    `packed["bdnet-a"].profile`.

# %% [markdown]
# ## Sources
#
# - D. Kim et al.: *BD-Net: Has Depth-Wise Convolution Ever Been Applied in Binary Neural Networks?*
#   (2025), arXiv:2511.17633.
# - Z. Liu et al.: *Bi-Real Net* (2018), arXiv:1808.00278; *ReActNet* (2020), arXiv:2003.03488.
# - Z. Tu et al.: *AdaBin* (2022), arXiv:2208.08084.
# - T. Sheng et al.: *A Quantization-Friendly Separable Convolution for MobileNets* (2018),
#   arXiv:1803.08607: batch norm and channels of zero variance.
# - N. Otsu: *A Threshold Selection Method from Gray-Level Histograms* (1979).
