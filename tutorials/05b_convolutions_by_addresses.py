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
# # Convolutions by addresses
#
# **You will learn** how a convolution on words runs without copying the image; how the corrections
# at the border shrink to a few classes; and how batch norm, sign and max-pool become operations on
# the bits that the kernel writes.
#
# **You need** [05](05_convolutions_on_bits.ipynb), and the kernel "one row, 8 columns" of
# [04b](04b_a_product_as_fast_as_the_machine.ipynb). None of this is needed for the chapters that
# follow.
#
# **Time** about 13 minutes of reading; the cells run for about 10 seconds.

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # NumPy on one core

# %%
import time

import matplotlib.pyplot as plt
import numba
import numpy as np
from matplotlib.patches import Rectangle

from tinybnn.kernels import xnor
from tinybnn.kernels.bits import pack, unpack
from tinybnn.kernels.signs import pooling
from tinybnn.kernels.signs.thresholds import threshold
from tinybnn.kernels.simd import load, load_splat, popcount, store, zero_words

numba.set_num_threads(1)
rng = np.random.default_rng(0)


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


# %% [markdown]
# ## The question
#
# im2col writes each window into a row, so with 3 × 3 filters nearly every word of the image is
# written nine times, and read back by the product. Compared with a fast product, this copy is not
# cheap. **Can the product read the windows where they are?**
#
# PyTorch's order of axes is NCHW: images, channels, rows, columns. For bits the channels are put
# last, NHWC, and are packed: a pixel is $\lceil C/64 \rceil$ words. Then the words that a tap sees
# are contiguous, and so are those of the taps in one row of a filter. Here are four images of 100
# channels, two words a pixel with 28 tail bits, and 48 filters.

# %%
N, H, W, C, filters = 4, 14, 14, 100, 48
x_signs = rng.choice(np.float32([-1, 1]), (N, H, W, C))
w_signs = rng.choice(np.float32([-1, 1]), (filters, 3, 3, C))
x, weight = pack(x_signs), pack(w_signs)
words = x.shape[-1]
print("images", x.shape, "filters", weight.shape)
print(f"{x_signs.nbytes:,} bytes as floats, {x.nbytes:,} as words")

# %% [markdown]
# The convolution of this notebook has filters of odd size, and padding that keeps the size of the
# image. The reference in floats; `outside` is the value of the frame:


# %%
def convolve(images, weight, outside):
    """images (N, H, W, C), weight (O, k, k, C) -> (N, H, W, O); one matrix product per tap."""
    _, height, width, _ = images.shape
    _, size, _, _ = weight.shape
    frame = size // 2
    padded = np.pad(
        images, ((0, 0), (frame, frame), (frame, frame), (0, 0)), constant_values=outside
    )
    return sum(
        padded[:, y : y + height, x : x + width] @ weight[:, y, x].T
        for y in range(size)
        for x in range(size)
    )


expected = convolve(x_signs, w_signs, outside=0)
assert np.array_equal(xnor.xnor_conv2d(x, weight, C, padding=(1, 1)), expected)

# %% [markdown]
# ## The naive version: im2col on words
#
# Here the image has its channels last, and the words of a window are in the order row, column,
# channel.


# %%
def im2col(images, size):
    """(N, H, W, n) -> (N * H * W, k * k * n): what the filter sees at each pixel."""
    count, height, width, depth = images.shape
    frame = size // 2
    padded = np.pad(images, ((0, 0), (frame, frame), (frame, frame), (0, 0)))  # words of 0
    rows = np.empty((count, height, width, size, size, depth), images.dtype)
    for y in range(size):
        for x in range(size):
            rows[:, :, :, y, x] = padded[:, y : y + height, x : x + width]
    return rows.reshape(count * height * width, -1)


columns = im2col(x, 3)
products = xnor.xnor_matmul_reference(columns, weight.reshape(filters, -1), 9 * C)
print(f"image {x.nbytes:,} bytes, rows {columns.nbytes:,}")

# %% [markdown]
# The count gives $K - 2d = 9C - 2d$, with a frame of 0 bits. In 05 it was corrected by the weights
# of the taps outside. Here is the same correction in words: with $T$ taps inside and $9 - T$
# outside, let $d_\text{out}$ be the differences counted outside. The frame's word is 0, and XOR
# with 0 changes nothing, so $d_\text{out}$ is the number of ones in the taps outside, and
#
# $$s = T C - 2 (d - d_\text{out}) = \underbrace{T C + 2 \sum_{\text{taps outside}}
# \operatorname{popcount}(w)}_{\text{base}} - 2 d.$$
#
# The base replaces $K$. In the kernel only a constant changes.

# %% [markdown]
# ## Border classes
#
# Pixels with the same taps inside share their base. They form a *border class*. Rows and columns
# can be considered separately: with a 3 × 3 filter, a row of the image is the first, the last or
# another one, and so is a column, which makes nine classes.


# %%
def taps_inside(height, width, size):
    """(H, W, k * k) bool: which taps of the filter fall inside the image."""
    frame = size // 2
    row = np.arange(height)[:, None] + np.arange(size) - frame  # (H, k)
    column = np.arange(width)[:, None] + np.arange(size) - frame  # (W, k)
    rows, columns = (row >= 0) & (row < height), (column >= 0) & (column < width)
    both = rows[:, None, :, None] & columns[None, :, None, :]  # (H, W, k, k)
    return both.reshape(height, width, size * size)


masks, border_class = np.unique(taps_inside(5, 5, 3).reshape(25, 9), axis=0, return_inverse=True)
border_class = border_class.reshape(5, 5)
print(f"{len(masks)} classes in 25 pixels")

assert len(masks) == 9

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
shades = plt.get_cmap("Pastel1").colors
middle = [masks[border_class[y, x]] for y in (0, 2, 4) for x in (0, 2, 4)]  # one pixel of each

for row in range(5):
    for column in range(5):
        shade = shades[border_class[row, column]]
        left.add_patch(Rectangle((column, row), 1, 1, facecolor=shade, edgecolor="white"))
        count = masks[border_class[row, column]].sum()
        left.text(column + 0.5, row + 0.5, str(count), ha="center", va="center")
left.set(xlim=(0, 5), ylim=(5, 0), title="pixels: colour is the class, number the taps inside")

for i, mask in enumerate(middle):
    top, side = divmod(i, 3)
    shade = shades[border_class[2 * top, 2 * side]]
    for tap, is_inside in enumerate(mask):
        corner = side * 4 + tap % 3, top * 4 + tap // 3
        face = shade if is_inside else "white"
        right.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor="0.7"))
right.set(xlim=(-0.5, 11.5), ylim=(11.5, -0.5), title="each class: which taps are inside")
for axes in (left, right):
    axes.set_aspect("equal")
    axes.axis("off")
plt.show()

# %% [markdown]
# Each class has one base for each filter. With one random image of 5 × 5 signs and one filter, the
# nine bases give all 25 sums, corners and edges as well.

# %%
image = rng.choice(np.float32([-1, 1]), (5, 5))
kernel = rng.choice(np.float32([-1, 1]), (3, 3))
zeros = convolve(image[None, :, :, None], kernel[None, :, :, None], outside=0)[0, :, :, 0]
bases = masks.sum(1) + 2 * (~masks @ (kernel > 0).reshape(9).astype(int))
framed = np.pad(image > 0, 1)  # False is the bit 0
windows = np.lib.stride_tricks.sliding_window_view(framed, (3, 3))  # (5, 5, 3, 3)
d = (windows ^ (kernel > 0)).sum(axis=(2, 3))

assert np.array_equal(bases[border_class] - 2 * d, zeros)

# %% [markdown]
# And for the four images of 100 channels:

# %%
inside = taps_inside(H, W, 3)  # (H, W, 9)
tap_ones = np.bitwise_count(weight).sum(-1, dtype=np.int64).reshape(filters, 9)
base = C * inside.sum(-1)[..., None] + 2 * (~inside @ tap_ones.T)  # (H, W, O)
sums = products.reshape(N, H, W, filters) - 9 * C + base

assert np.array_equal(sums, expected)

# %% [markdown]
# ## The better version: addresses
#
# The rows of im2col contain no new data. Each of their words has an address in the padded image,
# seen as one flat array of words. This address is the sum of two parts: where the pixel's first
# word is, and how far the tap is from there.

# %%
padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
line = (W + 2) * words  # words of a row of the padded image

pixels = np.arange(N)[:, None, None] * ((H + 2) * line)
pixels = pixels + np.arange(H)[:, None] * line + np.arange(W) * words  # (N, H, W)
taps = np.arange(3)[:, None, None] * line + np.arange(3)[:, None] * words + np.arange(words)
pixels, taps = pixels.reshape(-1), taps.reshape(-1)
print("first pixels", pixels[:4], " taps", taps)

assert np.array_equal(padded.reshape(-1)[pixels[:, None] + taps], columns)

# %% [markdown]
# A kernel that uses these two tables needs no im2col rows. It is the kernel "one row, 8 columns" of
# 04b with another way to find the words. Stride and dilation would only change the numbers in the
# tables, not the loop.


# %%
@numba.njit
def direct(words, pixels, taps, panels, base, out):
    """panels : (O/8, taps, 8), base and out : (pixels, O), all flat arrays of words"""
    length = len(taps)
    filters = len(panels) // length
    for p in range(len(pixels)):
        for o in range(0, filters, 8):
            differ = zero_words()
            for t in range(length):
                seen = load_splat(words, pixels[p] + taps[t])
                differ += popcount(seen ^ load(panels, o * length + 8 * t))
            start = p * filters + o
            store(out, start, load(base, start) - differ - differ)


panels = np.ascontiguousarray(weight.reshape(filters // 8, 8, -1).swapaxes(1, 2)).reshape(-1)
base_words = np.broadcast_to(base, sums.shape).astype(np.int64).reshape(-1).view(np.uint64)
out = np.empty(sums.size, np.uint64)
direct(padded.reshape(-1), pixels, taps, panels, base_words, out)

assert np.array_equal(out.view(np.int64).reshape(sums.shape), sums)

# %% [markdown]
# ## Measured
#
# The package does the same with blocks of 4 pixels × 32 filters in registers, and keeps one row of
# bases for each border class rather than one for each pixel. As with the matrix product, weights
# and tables are laid out once for a given image size. A layer of a common size shows what the copy
# costs. It is a copy in NumPy, but one that moves whole rows of the image.

# %%
big_signs = rng.choice(np.float32([-1, 1]), (8, 28, 28, 128))
big_weight_signs = rng.choice(np.float32([-1, 1]), (128, 3, 3, 128))
big, big_weight = pack(big_signs), pack(big_weight_signs)
as_product = xnor.prepare_matmul(big_weight.reshape(128, -1), 9 * 128)
as_convolution = xnor.prepare_conv2d(big_weight, 128, (28, 28), padding=(1, 1))
rows, float_rows = im2col(big, 3), im2col(big_signs, 3)
float_filters = big_weight_signs.reshape(128, -1).T

assert np.array_equal(
    xnor.run(as_convolution, big), convolve(big_signs, big_weight_signs, outside=0)
)
for name, function, *arguments in (
    ("floats: im2col", im2col, big_signs, 3),
    ("floats: product (sgemm)", np.matmul, float_rows, float_filters),
    ("words: im2col", im2col, big, 3),
    ("words: product", xnor.run, as_product, rows),
    ("words by addresses: everything", xnor.run, as_convolution, big),
):
    print(f"{name:<32}{shortest(function, *arguments) * 1e3:8.2f} ms")

# %% [markdown]
# ## What follows: batch norm and sign
#
# A sum is seldom the final result. Batch norm and sign follow and turn it into a bit:
#
# $$\text{bit} = \left[\; \gamma\, \frac{s - \mu}{\sigma} + \beta \ge 0 \;\right].$$
#
# The expression is a straight line in $s$. For $\gamma > 0$ it rises, and the bit is 1 from some
# integer on. For $\gamma < 0$ it falls, and the bit is 1 below some integer: the inverse of being 1
# from that integer on. For $\gamma = 0$ the bit is constant. So, whatever the floats are,
#
# $$\text{bit} = [\, s \ge t \,] \oplus f,$$
#
# with one integer $t$ and one bit $f$ ("flip") per channel (Umuroglu et al. 2017).
#
# Solving the inequality for $s$ occasionally gives a wrong threshold, since the float expression is
# rounded. There are few integers, so we evaluate the expression itself at all of them. More on this
# in [06](06_compiling.ipynb).

# %%
gamma = rng.normal(size=filters).astype(np.float32)
gamma[5] = 0
beta, mean = (rng.normal(0, scale, filters).astype(np.float32) for scale in (0.5, 10))
sigma = rng.uniform(10, 40, filters).astype(np.float32)


def is_plus(sums):
    """Batch norm and sign in float32: sums (..., O) -> (..., O) bool."""
    return gamma * ((sums.astype(np.float32) - mean) / sigma) + beta >= 0


integers = np.arange(-9 * C, 9 * C + 2)  # all sums, and one more for "never"
flip = gamma < 0
reached = is_plus(integers[:, None]) != flip  # (integers, O): False, ..., False, True, ..., True
reached[-1] = True
thresholds = integers[reached.argmax(axis=0)].astype(np.int32)  # the first True

assert (reached[1:] >= reached[:-1]).all()
assert np.array_equal((sums >= thresholds) != flip, is_plus(sums))

# %% [markdown]
# The comparison need not wait until the sums are written. Since $s = \text{base} - 2d$,
#
# $$s \ge t \iff d \le \left\lfloor \frac{\text{base} - t}{2} \right\rfloor,$$
#
# so the kernel compares the differences it has just counted with a constant of the border class,
# and writes a bit. This is called a fused *epilogue*. The sums, of 32 bits each, never reach
# memory.
#
# `prepare_conv2d` takes thresholds; `threshold` does the same as a separate step.

# %%
separate = threshold(sums.astype(np.int32), thresholds, flip)
fused = xnor.prepare_conv2d(weight, C, (H, W), padding=(1, 1), thresholds=thresholds, flip=flip)
signs_after = xnor.run(fused, x)  # (N, H, W, 1): 48 bits per pixel

assert np.array_equal(signs_after, separate)
assert np.array_equal(unpack(signs_after, filters) > 0, is_plus(sums))
print(f"sums {sums.astype(np.int32).nbytes:,} bytes, bits {signs_after.nbytes:,}")

# %% [markdown]
# ## Max-pool before batch norm
#
# In a binary network, the pool often stands between convolution and batch norm and takes the
# maximum of sums. Can it still become an operation on bits? If the line of batch norm rises, the
# maximum of the sums becomes the maximum of the bits, which is OR. If it falls ($\gamma < 0$), the
# largest sum becomes the smallest value, so the result is the minimum of the bits, their AND.


# %%
def windows_of(array):
    """(N, H, W, ...) -> (N, H/2, 2, W/2, 2, ...)"""
    n, h, w, *rest = array.shape
    return array.reshape(n, h // 2, 2, w // 2, 2, *rest)


use_and = pack(np.where(flip, 1, -1))  # (1,) word: bit c is 1 where gamma < 0
any_one = np.bitwise_or.reduce(windows_of(signs_after), axis=(2, 4))
all_ones = np.bitwise_and.reduce(windows_of(signs_after), axis=(2, 4))
pooled = (any_one & ~use_and) | (all_ones & use_and)  # (N, H/2, W/2, 1)

largest = windows_of(sums).max(axis=(2, 4))  # the float order: pool, batch norm, sign
assert np.array_equal(unpack(pooled, filters) > 0, is_plus(largest))
assert not np.array_equal(any_one, pooled)
assert np.array_equal(
    pooling.max_pool2d(signs_after, filters, (2, 2), (2, 2), (0, 0), flip), pooled
)

# %% [markdown]
# ## In the package
#
# `prepare_conv2d` in [`kernels/signs/xnor.py`](../tinybnn/kernels/signs/xnor.py) prepares bases,
# tables of addresses and panels; windows that slide over an image are in
# [`kernels/machine/windows.py`](../tinybnn/kernels/machine/windows.py), and the blocks of 4 pixels
# × 32 filters in [`kernels/signs/counting.py`](../tinybnn/kernels/signs/counting.py). Padding with
# +1 needs no base:

# %%
assert np.array_equal(
    xnor.xnor_conv2d(x, weight, C, padding=(1, 1), padding_mode="ones"),
    convolve(x_signs, w_signs, outside=1),
)

# %% [markdown]
# ## Summary
#
# The words that a filter sees have addresses, each a sum of one number for the pixel and one for
# the tap, so a convolution is the kernel of a product with two tables. The border costs a constant
# for each of at most nine classes (for 3 × 3 filters). Batch norm and sign are a comparison of the
# count, in the same kernel, and a max-pool before them is OR or AND of the bits.

# %% [markdown]
# ## Exercises
#
# The exercises that check themselves are those of [05](05_convolutions_on_bits.ipynb). Think about:
#
# 1. How many border classes does a 5 × 5 filter with padding 2 have on an image of 14 × 14? And on
#    one of 3 × 3? Predict, then count with `taps_inside`. *Hint:* count the kinds of rows first. On
#    a small image a row can be near both borders.
# 2. What would the tables of addresses be for stride 2?

# %% [markdown]
# ## Sources
#
# - M. Rastegari, V. Ordonez, J. Redmon, A. Farhadi: *XNOR-Net* (2016), arXiv:1603.05279: binary
#   convolutions.
# - Y. Umuroglu et al.: *FINN* (2017), arXiv:1612.07119: batch norm and sign as a threshold,
#   max-pool as OR.
