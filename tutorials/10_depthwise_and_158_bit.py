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
# **You will learn** why the layer that makes mobile networks small resists binarization; how two
# planes of signs make a weight with three levels, whose products are still XNOR and popcount; and
# what a shortcut in front of the batch norm changes.
#
# **You need** convolutions of signs ([05](05_convolutions_on_bits.ipynb)), batch norm
# ([03](03_first_binary_network.ipynb)) and the straight-through estimator
# ([02](02_the_gradient_of_sign.ipynb)).
#
# **Time** about 15 minutes of reading; the cells run for about 10 seconds.
#
# The paper is *BD-Net: Has Depth-Wise Convolution Ever Been Applied in Binary Neural Networks?*
# (2025). Equations and tables are named by its numbers. [10b](10b_depthwise_in_networks.ipynb)
# looks at whole networks: gradients, and milliseconds.

# %%
import itertools

import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import Tensor, analysis, models, nn, plots, quantizers
from tinybnn.experiments import bdnet
from tinybnn.kernels.bits import pack
from tinybnn.kernels.xnor import xnor_matmul

rng = np.random.default_rng(0)

# %% [markdown]
# ## The question
#
# A regular convolution mixes all channels: with 128 of them and filters of $3 \times 3$ taps, an
# output is a sum of $9 \cdot 128 = 1152$ products. A *depth-wise* convolution keeps channels apart.
# Channel $c$ of the output comes from channel $c$ of the input alone, by a filter of its own: nine
# products. MobileNets use it for everything spatial, and mix channels by cheap $1 \times 1$
# convolutions.
#
# Now let inputs and weights be signs. A sum of nine products ±1 has few values:

# %%
nine = np.array(list(itertools.product((-1, 1), repeat=9)))  # all 512 windows of signs
values = np.unique(nine.sum(axis=1))
print(len(nine), "windows,", len(values), "sums:", values)

assert len(values) == 10

# %% [markdown]
# Ten values, and only $2^9 = 512$ different filters. **Can such a layer do enough, and can it be
# trained, while its products stay XNOR and popcount?**
#
# ## The naive version
#
# Each tap adds a product for every channel, and no sum goes over channels. One channel of 3 × 3
# pixels, one position, by hand:
#
#     image  + - +      filter  + + -      products  + - -
#            + + -              + - -                + - +      sum: 4 - 5 = -1
#            - - +              - + -                + - -


# %%
def depthwise_by_loops(x, weight):
    """x (N, C, H, W), weight (C, 3, 3) -> (N, C, H, W); the frame is 0."""
    _, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros_like(x)
    for c in range(channels):
        for i in range(3):
            for j in range(3):
                out[:, c] += padded[:, c, i : i + height, j : j + width] * weight[c, i, j]
    return out


image = np.float32([[1, -1, 1], [1, 1, -1], [-1, -1, 1]])[None, None]
kernel = np.float32([[1, 1, -1], [1, -1, -1], [-1, 1, -1]])[None]
assert depthwise_by_loops(image, kernel)[0, 0, 1, 1] == -1

layer = nn.BinaryDepthwiseConv2d(4, 3, padding=1, rng=rng)
signs = rng.choice(np.float32([-1, 1]), (2, 4, 8, 8))
weight = layer.binary_weight()[:, 0]  # (4, 1, 3, 3) -> (4, 3, 3)

assert np.array_equal(depthwise_by_loops(signs, weight), layer(Tensor(signs)).data)

# %% [markdown]
# The trouble begins with the batch norm that follows. A sum of $T$ random signs has the variance
# $T$, and the batch norm divides it by $\sqrt T$. If one weight flips, its product changes by 2:
# the normalized output moves by $2 / \sqrt T$, the distance of two neighbouring values:

# %%
samples = 200_000
figure, sides = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True, layout="constrained")
for axes, name, terms in zip(sides, ("depth-wise", "regular"), (9, 9 * 128), strict=True):
    sums = 2 * rng.binomial(terms, 0.5, samples) - terms
    values, counts = np.unique(sums, return_counts=True)
    step = 2 / np.sqrt(terms)
    density = counts / samples / step  # the area of a step is its share
    axes.fill_between(values / np.sqrt(terms), density, step="mid", color=plots.MINUS)
    axes.set(title=f"{name}: {terms:,} terms", xlabel="normalized output", xlim=(-4, 4))
    print(f"{name:<12}{len(values):>4} values, a flipped weight moves the output by {step:.2f}")
sides[0].set(ylabel="density", ylim=(0, None))
plt.show()

assert 2 / np.sqrt(9) > 10 * 2 / np.sqrt(9 * 128)

# %% [markdown]
# Both have the shape of a bell, in ten wide steps and in over a hundred narrow ones. A flip moves
# every output of its channel by one step: two thirds of a standard deviation in a depth-wise layer,
# a seventeenth in a regular one. BD-Net has two remedies: more levels, and a shortcut.
#
# ## Three levels in a weight
#
# A weight with the values -1, 0 and +1 holds $\log_2 3 \approx 1.58$ bits. Our products know signs
# only. So give it *two* latent weights $u$ and $v$, and let it be the mean of their signs:
#
# | sign(u) | sign(v) | weight |
# |:-|:-|:-|
# | + | + | +1 |
# | + | - | 0 |
# | - | + | 0 |
# | - | - | -1 |
#
# All weights $u$ of a layer together make one *plane* of signs, all $v$ another. Backwards nothing
# new is needed. With $t = (\operatorname{sign} u + \operatorname{sign} v) / 2$ and the
# straight-through estimator, which takes the slope of the sign as 1 within [-1, 1],
#
# $$\frac{\partial L}{\partial u} = \frac12 \frac{\partial L}{\partial t} \quad \text{where } |u|
# \le 1, \qquad \frac{\partial L}{\partial v} = \frac12 \frac{\partial L}{\partial t} \quad
# \text{where } |v| \le 1.$$
#
# The half is there because one plane alone moves the weight by half as much as a sign does. The
# condition is on the plane's own latent weight. And a weight of 0 has a gradient like all others,
# or it could never leave 0:

# %%
u = Tensor(np.float32([0.5, 0.5, -0.5, 1.5]), requires_grad=True)
v = Tensor(np.float32([0.2, -0.2, -0.2, -0.2]), requires_grad=True)
t = (quantizers.ste_sign(u) + quantizers.ste_sign(v)) * 0.5
(t * np.float32([10, 20, 30, 40])).sum().backward()  # dL/dt is 10, 20, 30, 40
print("weights   ", t.data)
print("gradient u", u.grad)
print("gradient v", v.grad)

assert np.array_equal(t.data, [1, 0, -1, 0])
assert np.array_equal(u.grad.data, [5, 10, 15, 0])  # the last u is beyond 1
assert np.array_equal(v.grad.data, [5, 10, 15, 20])

# %% [markdown]
# There is one trap. Both planes get the same gradient. If they start *equal*, they stay equal, and
# no weight is ever 0. So each plane starts with random numbers of its own. The start and two steps
# along a gradient that pulls all weights down, from equal planes and from different ones:

# %%
start = rng.uniform(-0.5, 0.5, 1000).astype(np.float32)
other = rng.uniform(-0.5, 0.5, 1000).astype(np.float32)
for name, (u, v) in {"equal": (start, start), "different": (start, other)}.items():
    zeros = [np.mean(np.sign(u - step / 5) + np.sign(v - step / 5) == 0) for step in range(3)]
    print(f"{name:<11}share of zeros at the start, after 1 and 2 steps:", np.round(zeros, 2))
    assert (max(zeros) == 0) == (name == "equal")

# %% [markdown]
# With three levels there are $3^9 = 19{,}683$ filters of nine taps in place of 512, and every
# integer from -9 to 9 is a sum of one of them.
#
# ## Two products on words
#
# A weight of 0 is no bit. But with signs $p$ and $q$ of the two planes, a sum of products with $t =
# (p + q) / 2$ is half of two sums of signs:
#
# $$\sum_i s_i t_i = \frac12 \Big( \sum_i s_i p_i + \sum_i s_i q_i \Big).$$
#
# Each of them is XNOR and popcount, `k - 2 * differences`. An example with three terms:
#
#     s      + - +
#     p      + + +      products with s: + - +, sum  1
#     q      + - -      products with s: + + -, sum  1
#     t      1 0 0      products with s: 1 0 0, sum  1 = (1 + 1) / 2
#
# Is half of it always an integer? Yes: each of the two is `k` minus an even number, so both are odd
# or both are even, and the sum is even. (Each of them alone may be odd, as here. Halves must not be
# rounded before they are added.) The check goes through all signs with $k = 4$ and $k = 5$.

# %%
for k in (4, 5):
    every = np.array(list(itertools.product((-1, 1), repeat=k)), np.float32)  # (2**k, k)
    words = pack(every)
    sums = xnor_matmul(words, words, k)  # of each row with each
    both = sums[:, :, None] + sums[:, None, :]  # s, p, q
    weights = (every[:, None] + every[None]) / 2  # p, q -> t
    expected = np.einsum("sk,pqk->spq", every, weights)
    print(f"k = {k}: {both.size:,} products")
    assert np.all(both % 2 == 0) and np.array_equal(both // 2, expected)

rounded_too_early = sums[:, :, None] // 2 + sums[:, None, :] // 2
assert not np.array_equal(rounded_too_early, expected)

# %% [markdown]
# ## Three levels in an input
#
# BD-Net is more general. It takes two binary convolutions side by side and adds their results. Each
# has a *rounding boundary* $\alpha_i$ of its own, at which the sign of its input changes, and an
# *output value* $\beta_i$. For one tap with weights +1 (Eq. 11):
#
# $$f(x) = \beta_1 \operatorname{sign}(x - \alpha_1) + \beta_2 \operatorname{sign}(x - \alpha_2).$$
#
# For $\alpha_1 \le \alpha_2$, both signs are -1 below both boundaries, between them the first is
# +1, and above them both are:
#
# $$f(x) = \begin{cases} -\beta_1 - \beta_2 & x < \alpha_1 \\ \beta_1 - \beta_2 & \alpha_1 \le x <
# \alpha_2 \\ \beta_1 + \beta_2 & \alpha_2 \le x. \end{cases}$$


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
# The weights of the two may differ as well (our reading of the paper's "two binary convs in
# parallel"). With the signs +1 and -1 the middle becomes the highest level: a function that first
# rises and then falls, which no single sign does.

# %%
figure, places = plt.subplots(1, 4, figsize=(9, 2.3), sharey=True, layout="constrained")
for axes, signs in zip(places, ((1, 1), (-1, -1), (1, -1), (-1, 1)), strict=True):
    axes.step(x, one_tap(boundaries, values, signs)(x), where="post", color=plots.MINUS)
    axes.set(title=f"signs of the weights {signs}", xlabel="x")
    axes.title.set_fontsize("small")
places[0].set_ylabel("f(x)")
plt.show()

assert one_tap(boundaries, values, (1, -1))(np.float32([-1, 0, 1])).argmax() == 1

# %% [markdown]
# Our weight with three levels is the case of *equal* boundaries and output values of 1/2: then
# $f(x) = t \operatorname{sign}(x - \alpha)$. With two different output values, an output of nine
# taps has up to $10 \cdot 10$ values, since each branch has ten sums:

# %%
for signs, t in (((1, 1), 1), ((1, -1), 0), ((-1, 1), 0), ((-1, -1), -1)):
    assert np.array_equal(one_tap((0, 0), (0.5, 0.5), signs)(x), t * quantizers.sign(x))

one = np.arange(-9, 10, 2)
pairs = np.unique(np.round(0.6 * one[:, None] + 0.37 * one[None, :], 6))
print("values of an output:", len(one), "and", len(pairs))
assert len(pairs) == 100

# %% [markdown]
# ## A shortcut in front of the batch norm
#
# Signs are not fair coins. If a channel is +1 with probability $p$, one sign has the variance $4 p
# (1 - p)$: 1 for $p = 0.5$, but 0.04 for $p = 0.99$. A regular layer averages over its channels. A
# depth-wise output depends on one channel alone. If that channel is nearly constant, the variance
# of its sums is near 0 and depends on a few pixels. The batch norm divides by its root, and
# multiplies the gradient by the same factor, $\alpha = \gamma / \sqrt{\sigma^2 + \epsilon}$ (Eq. 1;
# the paper uses the letter twice: this $\alpha$ is no boundary).
#
# Binary networks have a shortcut *behind* the norm (Bi-Real Net): $y =
# \operatorname{BN}(\operatorname{conv}(x)) + x$. It brings the real-valued input past the signs.
# BD-Net adds the input *before* the norm as well:
#
# $$y = \operatorname{BN}(\operatorname{conv}(x) + x) + x.$$
#
# Then the norm also sees the spread of the real numbers, which remains when all signs are equal.
# Take twenty batches of 64 windows, real numbers of which 99% are positive. The filter is all +1;
# the shortcut adds the number in the middle of the window:

# %%
batches = rng.normal(2.33, 1, (20, 64, 9))  # real numbers before the sign
sums, middle = quantizers.sign(batches).sum(axis=2), batches[:, :, 4]
factors = {}
for name, seen in {"without": sums, "with the shortcut": sums + middle}.items():
    factors[name] = 1 / np.sqrt(seen.var(axis=1) + 1e-5)
    least, most = factors[name].min(), factors[name].max()
    print(f"{name:<18} factor of the batch norm: {least:.2f} to {most:.2f}")

assert np.ptp(factors["with the shortcut"]) < np.ptp(factors["without"]) / 3

# %% [markdown]
# Without the shortcut the factor varies threefold between batches, with it by less than half. Now
# a layer of the package, with both shortcuts, and the same by hand. (`make_method` makes the layers
# of a network by its name, here the paper's BD-Net-A; `spatial` is the depth-wise one.)

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
# ## Counting operations
#
# Papers count OPs = FLOPs + BOPs / 64, operations on floats and on bits: a product of real numbers
# is one operation, and so are 64 products of signs, since they fit a word. An output value takes
# one product for each tap and each channel that its filter sees. A layer of 128 channels on 56 × 56
# pixels, by the package:

# %%
C, SIZE = 128, 56
layers = {
    "real, regular": nn.Conv2d(C, C, 3, padding=1, bias=False),
    "real, depth-wise": nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False),
    "binary, regular": nn.BinaryConv2d(C, C, 3, padding=1),
    "binary, depth-wise": nn.BinaryDepthwiseConv2d(C, 3, padding=1),
    "1.58-bit, depth-wise": nn.DualBinaryConv2d(C, C, 3, padding=1, groups=C),
}
ops = {}
for name, layer in layers.items():
    ops[name] = analysis.count_operations(layer, (C, SIZE, SIZE)).ops
    print(f"{name:<22}{ops[name]:>14,.0f}")

assert ops["real, regular"] == SIZE * SIZE * C * C * 9
assert ops["1.58-bit, depth-wise"] == 2 * (SIZE * SIZE * C * 9) / 64
assert ops["real, depth-wise"] < ops["binary, regular"]

# %% [markdown]
# That is the paper's Table 1, and a line more. Binarizing a regular convolution saves *less* than
# keeping floats and going depth-wise. Networks that put regular binary layers in the place of
# depth-wise ones, as ReActNet does with MobileNet, therefore have more operations there than the
# float network. The gain is in the last two lines.
#
# ## Measured
#
# What do the two remedies cost in a whole network, a MobileNet V1 of full width? *naive* has
# neither of them, *+ pre-BN* the shortcut before the norm, and *BD-Net-A* both.

# %%
count = {}
for arm in bdnet.ABLATION.values():
    network = arm.network(bdnet.Config(width=1.0), (3, 32, 32), 10, np.random.default_rng(0))
    count[arm.title] = analysis.count_operations(network, (3, 32, 32)).ops
    print(f"{arm.title:<18}{count[arm.title] / 1e6:8.4f} million OPs")

assert count["+ 1.58-bit"] / count["naive"] < 1.02

# %% [markdown]
# And what do they gain? Training takes longer than a notebook should. At a quarter of the width, 20
# epochs on CIFAR-10, mean of three seeds
# ([report](../tinybnn/experiments/results/bdnet-ablation/report.md); `tinybnn reproduce
# bdnet-ablation --quick` runs the chain on digits in minutes):
#
# | | test accuracy | against naive | the same in the paper: CIFAR-100, full width |
# |---|---|---|---|
# | naive | 61.95% | | |
# | + 1.58-bit | 63.29% | +1.34 | +1.24 |
# | + pre-BN | 68.69% | +6.74 | +1.99 |
# | both: BD-Net-A | 69.91% | +7.96 | +3.34 |
#
# The order is the paper's. Here the shortcut is most of the gain, and it costs an addition.
#
# ## In the package
#
# | here | there |
# |---|---|
# | depth-wise convolution of signs | [`nn.BinaryDepthwiseConv2d`](../tinybnn/nn/binary.py) |
# | two convolutions side by side | [`nn.DualBinaryConv2d`](../tinybnn/nn/binary.py) |
# | both products in one pass | [`kernels/floats/fused.py`](../tinybnn/kernels/floats/fused.py) |
# | the layer with both shortcuts | [`models/blocks.py`](../tinybnn/models/blocks.py) |
#
# With boundaries of 0 and output values of 1/2 the package's layer is ours:

# %%
dual = nn.DualBinaryConv2d(4, 4, 3, padding=1, groups=4, rng=rng).eval()
for branch in dual.branches:
    branch[0].threshold.data[...] = 0
    branch[1].scale.data[...] = 0.5
planes = dual.binary_weight()[:, :, 0]  # (2, 4, 3, 3)
with tb.no_grad():
    found = dual(Tensor(image)).data

assert np.array_equal(found, depthwise_by_loops(quantizers.sign(image), planes.mean(axis=0)))

# %% [markdown]
# ## Summary
#
# A depth-wise convolution of signs is cheap and coarse: nine terms, ten values. Two planes of signs
# make weights of -1, 0 and +1; each plane gets half of the gradient, and the product is half the
# sum of two products on words, exactly. Adding the input before the batch norm keeps the factor of
# the norm from jumping between batches. Both together cost 1.4% more operations in a MobileNet.

# %% [markdown]
# ## Exercises
#
# | | write | task |
# |:-|:-|:-|
# | 10.1 | `depthwise(x, weight, ...)` | each channel with its own filter, by your `windows` |
# | 10.2 | `three_levels(first, second)` | the mean of two signs, in your engine |
# | 10.3 | `dual_matmul(a, first, second, k)` | its product on words |
# | 10.4 | `residual_norm(sums, x, ...)` | batch norm with both shortcuts |
# | 10.5 | `operations(channels, ...)` | how many operations a convolution takes |
#
# Edit `mybnn/dual.py`, beside this notebook, which uses your functions of 02 to 05. Then type in a
# terminal, in the folder of the course:
#
#     tinybnn course check 10      # or one: tinybnn course check 10.2
#     tinybnn course hint 10.2     # three hints, one after the other
#     tinybnn course milestone 8   # BD-Net with your code inside
#
# Or check from here:

# %%
from tinybnn import course  # noqa: E402

course.show("10")

# %% [markdown]
# Think about:
#
# 1. Build the convolution with three branches by `one_tap` and draw it. How many levels does it
#    have, and how many bits are that? *Hint:* boundaries at -0.5, 0 and 0.5.
# 2. A weight with three levels can also be two words of another kind: a sign, and a mask that is 0
#    where the weight is 0. Then the sum needs XOR, AND and *one* popcount for each word. What would
#    be the gradient of the mask, and why are two planes of signs easier to train?

# %% [markdown]
# ## Sources
#
# - D. Kim et al.: *BD-Net: Has Depth-Wise Convolution Ever Been Applied in Binary Neural Networks?*
#   (2025), arXiv:2511.17633.
# - Z. Liu et al.: *ReActNet* (2020), arXiv:2003.03488; *Bi-Real Net* (2018), arXiv:1808.00278.
# - A. Howard et al.: *MobileNets* (2017), arXiv:1704.04861.
