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
# # Convolutions on bits
#
# **You will learn** what a convolution is and how it becomes a product of matrices, forwards and
# backwards; how it runs on packed words, and what to do at the border, which needs zeros although a
# bit cannot represent zero; what the scale of XNOR-Net is; and why max-pool of signs is an OR.
#
# **You need** [04](04_xnor_and_popcount.ipynb): packing, and $a \cdot b = K - 2
# \operatorname{popcount}(a \oplus b)$. For the part on gradients, also
# [01](01_autograd_from_scratch.ipynb). You need not know convolutions: they are explained here.
#
# **Time** about 14 minutes of reading; the cells run for about 10 seconds.

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # NumPy on one core

# %%
import time

import matplotlib.pyplot as plt
import numba
import numpy as np

import tinybnn as tb
from tinybnn import datasets, plots
from tinybnn import functional as F
from tinybnn.kernels import bits, xnor

numba.set_num_threads(1)
rng = np.random.default_rng(0)

# %% [markdown]
# ## The question
#
# A dense layer has a weight for each pixel of an image. Move the image by one pixel, and every
# weight meets a pixel that it was not trained for. But a stroke is a stroke wherever it is. So let
# us take a small filter of, say, 3 × 3 weights and move *it*: at each position, it is multiplied by
# the 3 × 3 pixels below it and the nine products are added up. The sum is large where the image
# looks like the filter. All sums together form a new image, and this operation is a *convolution*
# (strictly speaking a cross-correlation: in mathematics, the filter would be rotated by 180
# degrees).
#
# Here is a handwritten 3, the signs of its pixels, and a filter that looks for an upper edge: light
# above, dark below.

# %%
train, test = datasets.load("digits")
digit = np.where(train.images[3, 0] >= 8, np.float32(1), np.float32(-1))  # +1: dark
edge = np.float32([[-1, -1, -1], [1, 1, 1], [1, 1, 1]])

axes = plt.figure(figsize=(8, 5.4)).add_axes((0, 0, 1, 1))
plots.convolution(digit[None], edge[None], ((0, 0), (3, 4)), threshold=3, ax=axes)
plt.show()

# %% [markdown]
# Below are two positions bit by bit. The picture counts the $p$ bits that agree, so the sum is
# $2p - 9$; with $d = 9 - p$ differences that is $9 - 2d$, as in 04. Everything in it is signs and
# counts. **How does a whole layer of such filters run on words, and give exactly the numbers of a
# float network?** Inside the image, the method of 04 applies. The border is another matter.

# %% [markdown]
# ## The naive version
#
# A real layer has several *channels*. A colour image has three numbers for each pixel, red, green
# and blue; a layer of $O$ filters computes $O$ sums for each pixel, the $O$ channels of its output.
# A filter has weights for all channels of its input and adds up all their products. The axes are,
# in this order,
#
# - images $(N, C, H, W)$: number, channel, row, column;
# - weights $(O, C, k, k)$: filter, channel, row, column;
# - sums $(N, O, H', W')$.


# %%
def convolve(images, weight):
    """The definition: at each position, for each filter, all products added up."""
    count, _, height, width = images.shape
    filters, _, size, _ = weight.shape
    sums = np.empty((count, filters, height - size + 1, width - size + 1), np.float32)
    for n, o, i, j in np.ndindex(sums.shape):  # four loops in one
        sums[n, o, i, j] = (images[n, :, i : i + size, j : j + size] * weight[o]).sum()
    return sums


sums = convolve(digit[None, None], edge[None, None])
print(sums[0, 0].astype(int))

assert sums.shape == (1, 1, 6, 6)
assert sums[0, 0, 0, 2] == (digit[0:3, 2:5] * edge).sum()

# %% [markdown]
# The output is smaller than the image: a filter of 3 × 3 has 6 positions in a row of 8. Two numbers
# change that. *Padding* puts a frame of $p$ pixels around the image; with $p = 1$ and a 3 × 3
# filter the output is as large as the image. The *stride* $s$ is the step from one position to the
# next. The number of positions in a row of $W$ pixels is
#
# $$W' = \left\lfloor \frac{W + 2p - k}{s} \right\rfloor + 1.$$

# %%
for padding, stride in ((0, 1), (1, 1), (1, 2), (0, 3)):
    positions = (8 + 2 * padding - 3) // stride + 1
    shape = F.conv2d(
        tb.Tensor(digit[None, None]), tb.Tensor(edge[None, None]), padding=padding, stride=stride
    ).shape
    print(f"padding {padding}, stride {stride}: {positions} positions in a row, output {shape}")
    assert shape == (1, 1, positions, positions)

# %% [markdown]
# ## A convolution is a product of matrices
#
# Four loops in Python are slow. But what happens at each position is a dot product of the window's
# values and the filter's values. So write every window as a row and every filter as a row; then all
# sums together are a product of matrices, for which fast code exists. Here is an image of 4 × 4
# pixels and its four windows of 3 × 3:

# %%
small = np.arange(1, 17).reshape(4, 4)
rows = np.array([small[i : i + 3, j : j + 3].reshape(9) for i in (0, 1) for j in (0, 1)])
print("image\n", small, "\n\nwindows, one a row\n", rows, sep="")
print("\nsums", rows @ edge.reshape(9).astype(int))

assert np.array_equal(rows @ edge.reshape(9), convolve(small[None, None], edge[None, None]).ravel())

# %% [markdown]
# This is called *im2col* ("image to columns"). With several channels, the windows of the channels
# follow one another: channel, row, column, the order in which `weight.reshape(O, -1)` puts the
# weights of a filter. Any order would do, but it must be the same on both sides. A window of 2
# channels:

# %%
window = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])  # (C, row, column)
print(
    "channel 0\n", window[0], "\nchannel 1\n", window[1], "\nas a row ", window.reshape(8), sep=""
)

assert window.reshape(8).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]

# %% [markdown]
# The price is memory: pixel 6 of the image above occurs in four rows, and with 3 × 3 filters nearly
# every pixel of a large image occurs nine times.

# %%
count = np.bincount(rows.ravel(), minlength=17)[1:].reshape(4, 4)
print("how often each pixel is in a window\n", count, sep="")

assert count.sum() == rows.size and count[1, 1] == 4 and count[0, 0] == 1

# %% [markdown]
# ## The gradient of a convolution
#
# Training needs the backward pass. The product of matrices has a known rule, which gives a gradient
# for each number in the rows. What is the gradient of a *pixel*? The pixel occurs in several rows,
# and changing it changes all of them. By the chain rule its gradient is the **sum** over all places
# where it is used. So the rule of im2col is: add the gradient of each window back to the place
# where the window was. (Gradients on a frame of padding belong to no pixel and are dropped.) If all
# gradients are 1, each pixel gets the number of windows that contain it, the table above. The
# package's autograd agrees:

# %%
x = tb.Tensor(small[None, None].astype(np.float32), requires_grad=True)
F.conv2d(x, tb.Tensor(np.ones((1, 1, 3, 3), np.float32))).sum().backward()

assert np.array_equal(x.grad.data[0, 0], count)

# %% [markdown]
# One trap: windows overlap, and a later write must not replace an earlier one. `+=` adds, but not
# if one assignment names the same place twice:

# %%
grad = np.zeros(3)
grad[[0, 1, 1]] += 1
print("places 0, 1, 1:", grad, "- the second 1 is lost")

assert grad[1] == 1

# %% [markdown]
# A loop over the positions with one `+=` per window is safe. So is `np.add.at`.

# %% [markdown]
# ## A scale for each filter
#
# The sign of a weight discards its magnitude. XNOR-Net (Rastegari et al. 2016) gives each filter
# one float $\alpha > 0$, its *scale*, so that $\alpha \operatorname{sign}(w)$ is as near as
# possible to the latent weights $w$ of the filter. With $n$ weights and
# $|w_i| = w_i \operatorname{sign}(w_i)$ the squared error is
#
# $$\sum_i (w_i - \alpha \operatorname{sign}(w_i))^2 = \sum_i w_i^2 - 2 \alpha \sum_i |w_i| + n
# \alpha^2.$$
#
# Its derivative with respect to $\alpha$, $-2 \sum |w_i| + 2 n \alpha$, is zero at
# $\alpha = \frac{1}{n} \sum_i |w_i|$: the mean of the magnitudes.

# %%
w = np.array([0.5, -0.1, 0.2, -0.4])
alphas = np.linspace(0, 0.6, 61)
errors = [np.square(w - alpha * np.sign(w)).sum() for alpha in alphas]
best = alphas[np.argmin(errors)]
print(f"mean of |w| {np.abs(w).mean():.2f}, best alpha {best:.2f}, mean of w {w.mean():.2f}")

assert np.isclose(best, np.abs(w).mean())

# %% [markdown]
# The sums remain integers: the layer computes $\alpha$ times (sum of products of signs), with one
# multiplication per output, after counting.

# %% [markdown]
# ## A zero is not a sign
#
# Now to words. We pack each window and each filter, and 04 does the rest, with one exception. Float
# networks fill the frame with zeros: a weight that falls on it adds nothing. (A place in a filter
# is called a *tap*.) A bit is +1 or -1; it has no third value for "adds nothing". What happens if
# we pad with a sign?

# %%
image = rng.choice(np.float32([-1, 1]), (5, 5))
kernel = rng.choice(np.float32([-1, 1]), (3, 3))


def padded_with(value):
    """Sums (5, 5) of the image in a frame of this value."""
    framed = np.pad(image, 1, constant_values=value)
    return convolve(framed[None, None], kernel[None, None])[0, 0].astype(int)


zeros, ones, minus = padded_with(0), padded_with(1), padded_with(-1)
print(f"padded with 0\n{zeros}\n\npadded with -1\n{minus}")

assert np.array_equal(zeros[1:-1, 1:-1], minus[1:-1, 1:-1])
assert not np.array_equal(zeros, ones) and not np.array_equal(zeros, minus)

# %% [markdown]
# Inside, all agree; at the border, they do not. If a network is trained with zeros and its bits are
# padded with a sign, it becomes another network, with another accuracy. (Zeros leave a trace: a sum
# of nine signs is odd, a sum of six or four is even.)
#
# There are two exact solutions. One is to pad with +1, both in training and on bits. The other is
# to pad with zeros in training and to correct the sums on bits.

# %% [markdown]
# ## The better version: a correction
#
# Let the frame hold bits of 0, that is, -1. A tap $w$ on the frame then adds $-1 \cdot w$, where it
# should add nothing. So the right sum is the counted one plus the weights of the taps outside:
#
# $$s = \underbrace{K - 2d}_{\text{counted, frame of } -1} + \sum_{\text{taps outside}} w.$$
#
# The correction depends on the filter and the position but not on the image, so it is computed
# once, however many images follow. For the upper left corner of our image:

# %%
framed = np.pad(image > 0, 1)  # False is the bit 0
differences = framed[:3, :3] ^ (kernel > 0)
outside = np.ones((3, 3), bool)
outside[1:, 1:] = False
counted, correction = 9 - 2 * differences.sum(), int(kernel[outside].sum())
print("bits under the filter\n", framed[:3, :3].astype(int))
print("bits of the filter\n", (kernel > 0).astype(int))
print(f"counted {counted}, taps outside {correction:+}, sum {counted + correction}")

assert counted == minus[0, 0]
assert counted + correction == zeros[0, 0]

# %% [markdown]
# Which taps are outside, at all positions at once? Convolve an image that is 1 on the frame and 0
# inside: its products are the weights of the taps outside, and nothing else.

# %%
frame = np.pad(np.zeros((5, 5), np.float32), 1, constant_values=1)
corrections = convolve(frame[None, None], kernel[None, None])[0, 0].astype(int)
print(corrections)

assert np.array_equal(minus + corrections, zeros)

# %% [markdown]
# ## Max-pool of bits
#
# *Max-pool* makes images smaller: it takes the largest value of each 2 × 2 pixels, separately for
# each channel. The largest of several signs is +1 if **any** of them is +1. In bits this is OR,
# `|`, which works on the 64 channels of a word at once. (With an odd number of rows, the last row
# is dropped.)

# %%
signs = np.array([[-1, -1, 1, -1], [-1, -1, -1, 1], [1, -1, -1, -1], [-1, -1, -1, -1]])
largest = signs.reshape(2, 2, 2, 2).max(axis=(1, 3))
pool_bits = (signs > 0).astype(int)
print("bits\n", pool_bits, "\nlargest of 2 x 2\n", (largest > 0).astype(int), sep="")
print("the first two rows:", pool_bits[0], "|", pool_bits[1], "=", pool_bits[0] | pool_bits[1])

assert pool_bits[0, 2] | pool_bits[0, 3] | pool_bits[1, 2] | pool_bits[1, 3] == 1
assert np.array_equal(largest > 0, [[False, True], [True, False]])

# %% [markdown]
# The smallest of four signs would be their AND. It is needed where batch norm reverses the order;
# see [06](06_compiling.ipynb).

# %% [markdown]
# ## Measured
#
# We time a layer of usual size: 8 images of 28 × 28 pixels and 128 channels, 128 filters of 3 × 3.
# The package computes it from floats, and from words with the corrections built in. Images in words
# have their channels last; [05b](05b_convolutions_by_addresses.ipynb) explains why. The loops of
# the definition run on one image and 2 filters.

# %%
x_signs = rng.choice(np.float32([-1, 1]), (8, 128, 28, 28))
w_signs = rng.choice(np.float32([-1, 1]), (128, 128, 3, 3))
x_words = bits.pack(x_signs.transpose(0, 2, 3, 1))  # (8, 28, 28, 2)
w_words = bits.pack(w_signs.transpose(0, 2, 3, 1))  # (128, 3, 3, 2)
prepared = xnor.prepare_conv2d(w_words, 128, (28, 28), padding=(1, 1))
x, w = tb.Tensor(x_signs), tb.Tensor(w_signs)


def floats():
    with tb.no_grad():
        return F.conv2d(x, w, padding=1).data


def shortest(function, *arguments):
    """Seconds that the fastest of 3 runs takes, after one that is not counted."""
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


some = np.pad(x_signs[:1], ((0, 0), (0, 0), (1, 1), (1, 1)))
ways = {
    "loops in Python": shortest(convolve, some, w_signs[:2]) / (2 * 28 * 28),
    "product of floats": shortest(floats) / (8 * 128 * 28 * 28),
    "words": shortest(xnor.run, prepared, x_words) / (8 * 128 * 28 * 28),
}
for name, seconds in ways.items():
    print(f"{name:<18}{seconds * 1e9:10.2f} ns for each sum of {9 * 128:,} products")

from_words = xnor.run(prepared, x_words).transpose(0, 3, 1, 2)
assert np.array_equal(from_words, floats())
assert np.array_equal(from_words[:1, :2], convolve(some, w_signs[:2]))
assert ways["words"] < ways["loops in Python"] / 10

# %% [markdown]
# ## In the package
#
# | here | there |
# |---|---|
# | im2col and its gradient | [`functional/convolution.py`](../tinybnn/functional/convolution.py) |
# | the convolution on words | [`xnor.xnor_conv2d`](../tinybnn/kernels/signs/xnor.py) |
# | max-pool of words | [`kernels/signs/pooling.py`](../tinybnn/kernels/signs/pooling.py) |
# | the layer | [`nn.BinaryConv2d`](../tinybnn/nn/binary.py) |
#
# Both solutions at the border are available: `padding_mode="zeros"` and `padding_mode="ones"`.

# %%
image_words, kernel_words = bits.pack(image[None, :, :, None]), bits.pack(kernel[None, :, :, None])
for mode, wanted in (("zeros", zeros), ("ones", ones)):
    found = xnor.xnor_conv2d(image_words, kernel_words, 1, padding=(1, 1), padding_mode=mode)
    assert np.array_equal(found[0, :, :, 0], wanted)
print("both agree")

# %% [markdown]
# ## Summary
#
# A convolution moves a filter over an image; with every window as a row it is a product of
# matrices, and on signs a product of words. Backwards, the gradients of overlapping windows are
# added. Zeros in the frame are not signs: count them as -1 and add the weights outside, a
# correction that does not depend on the image. The scale of a filter is the mean of the magnitudes
# of its latent weights, and max-pool of signs is OR.

# %% [markdown]
# ## Exercises
#
# | | write | task |
# |:-|:-|:-|
# | 05.1 | `windows(x, size, ...)` | what a filter sees at each position, one per row |
# | 05.2 | `fold_windows(grad, shape, ...)` | the way back: add windows to their pixels |
# | 05.3 | `weight_scale(latent)` | the scale of each filter |
# | 05.4 | `xnor_conv2d(x, weight, padding)` | the convolution on words, with a frame of zeros |
# | 05.5 | `max_pool_bits(bits)` | max-pool as OR |
#
# Edit `mybnn/convolution.py`, beside this notebook. It uses your `mybnn/packing.py` of 04 and
# contains a layer, `binary_conv2d`, built from your functions. Then type in a terminal, in the
# folder of the course:
#
#     tinybnn course check 05      # or one: tinybnn course check 05.2
#     tinybnn course hint 05.2     # three hints, one after the other
#
# Or check from here:

# %%
from tinybnn import course  # noqa: E402

course.show("05")

# %% [markdown]
# Think about:
#
# 1. Pad once with -1 and once with +1, and take the mean of both sums. Why is it exactly the sum
#    with zeros? What does this method cost?
# 2. A ternary weight is +1, 0 or -1: two words per tap: one with the signs and one, the mask, that
#    says where the weight is not 0. Derive the sum of a row from XOR, AND and popcount. What does
#    this have to do with padding?

# %% [markdown]
# ## Sources
#
# - M. Rastegari, V. Ordonez, J. Redmon, A. Farhadi: *XNOR-Net* (2016), arXiv:1603.05279: binary
#   convolutions, the scale of a filter.
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016), arXiv:1602.02830.
# - Y. Umuroglu et al.: *FINN* (2017), arXiv:1612.07119: max-pool as OR.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the image.
