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
# **You will learn** how a convolution of signs runs on packed words: what to do at the border,
# where zeros are needed and a bit can't be one; how a convolution becomes a matrix product without
# copying the image; how batch norm, sign and max-pool become operations on bits; and how a
# depth-wise convolution, for which XOR and popcount are of no use, is computed with counters that
# stand upright.
#
# **You need** notebook 04: packing, and $a \cdot b = K - 2 \operatorname{popcount}(a \oplus b)$.
# Reading takes about twenty-five minutes, running half a minute.
#
# Each step is written in plain NumPy first, checked by `==`, and then compared with the package's
# kernel. Times are those of the machine that ran the notebook.

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # NumPy on one core

# %%
import time

import matplotlib.pyplot as plt
import numba
import numpy as np
from matplotlib.patches import Rectangle

from tinybnn import plots
from tinybnn.kernels import depthwise, xnor
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
# ## Part one: the border
#
# ### 1. A zero is not a sign
#
# A filter of $k \times k$ weights slides over an image; each weight is a *tap*. With *padding* the
# image gets a frame, so that the filter can stand on the border too. Float networks fill the frame
# with zeros: a tap that falls on it adds nothing.
#
# The function below is the convolution of this notebook: filters of odd size, and padding that
# leaves the size of the image as it is. `outside` is the value of the frame.


# %%
def convolve(images, weight, outside):
    """images (N, H, W, C), weight (O, k, k, C) -> (N, H, W, O); one product of matrices a tap."""
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


# %% [markdown]
# Take a small image with one channel, 5 × 5 signs, and one filter of 3 × 3.

# %%
image = rng.choice(np.float32([-1, 1]), (5, 5))
kernel = rng.choice(np.float32([-1, 1]), (3, 3))

zeros, ones, minus = (
    convolve(image[None, :, :, None], kernel[None, :, :, None], outside)[0, :, :, 0]
    for outside in (0, 1, -1)
)
for name, sums in (("zeros", zeros), ("+1", ones), ("-1", minus)):
    print(f"padded with {name}:\n{sums.astype(int)}\n")

assert np.array_equal(zeros[1:-1, 1:-1], minus[1:-1, 1:-1])
assert not np.array_equal(zeros, ones) and not np.array_equal(zeros, minus)

# %% [markdown]
# Inside all three agree; at the border they don't. But a bit is +1 or -1. There is no third value
# for "adds nothing". If a network is trained with zeros and its bits are padded with anything, it
# is another network, and its accuracy another one.
#
# There are two exact ways out, and the package has both:
#
# - `padding_mode="ones"`: pad with +1, in training as on bits. Nothing else is to be done.
# - `padding_mode="zeros"`: pad with zeros in training, and correct the sums on bits. How, is the
#   rest of this part.
#
# (Zeros leave a trace: a sum of nine signs is odd, and a sum of six or four is even. Look at the
# border of the first result.)

# %% [markdown]
# ### 2. The correction
#
# Let the frame hold words of 0 and look at one output pixel. Of the $k^2$ taps $T$ fall inside the
# image. Each has $C$ channels. The right sum is
#
# $$s = T C - 2 d_\text{in},$$
#
# with $d_\text{in}$ differences among the taps inside. What XOR and popcount give is the number of
# all differences, $d = d_\text{in} + d_\text{out}$. On the frame the image's word is 0, and XOR
# with 0 changes nothing: a tap $w$ outside gives $\operatorname{popcount}(0 \oplus w) =
# \operatorname{popcount}(w)$. So
#
# $$s = T C - 2 (d - d_\text{out}) = \underbrace{T C + 2 \sum_{\text{taps outside}}
# \operatorname{popcount}(w)}_{\text{base}} - 2 d.$$
#
# The base depends on the weights and on which taps are outside, not on the image. It can be
# computed once, when the model is compiled. In the kernel nothing changes but a constant.
#
# By hand, for the pixel in the upper left corner of our image ($C = 1$):

# %%
bits = np.pad(image > 0, 1)  # False is the bit 0
differences = bits[:3, :3] ^ (kernel > 0)
inside = np.array([[False, False, False], [False, True, True], [False, True, True]])
base = inside.sum() + 2 * (kernel[~inside] > 0).sum()
print("bits under the filter\n", bits[:3, :3].astype(int))
print("bits of the filter\n", (kernel > 0).astype(int))
print(f"differences {differences.sum()}, of these outside {differences[~inside].sum()}")
print(f"base {inside.sum()} + 2 * {(kernel[~inside] > 0).sum()} = {base}")
print(f"sum {base} - 2 * {differences.sum()} = {base - 2 * differences.sum()}")

assert base - 2 * differences.sum() == zeros[0, 0]

# %% [markdown]
# ### 3. Border classes
#
# Pixels with the same taps inside share their base. They form a *border class*. Which taps are
# inside is a question for rows and for columns apart: with a 3 × 3 filter a row of the image is the
# first, the last or another one, and so is a column, which makes nine classes.


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
middle = [masks[border_class[y, x]] for y in (0, 2, 4) for x in (0, 2, 4)]  # a pixel of each

for y in range(5):
    for x in range(5):
        shade = shades[border_class[y, x]]
        left.add_patch(Rectangle((x, y), 1, 1, facecolor=shade, edgecolor="white"))
        count = masks[border_class[y, x]].sum()
        left.text(x + 0.5, y + 0.5, str(count), ha="center", va="center")
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
# With the nine bases all 25 sums come out, corners and edges as well.

# %%
bases = masks.sum(1) + 2 * (~masks @ (kernel > 0).reshape(9).astype(int))
windows = np.lib.stride_tricks.sliding_window_view(bits, (3, 3))  # (5, 5, 3, 3)
d = (windows ^ (kernel > 0)).sum(axis=(2, 3))

assert np.array_equal(bases[border_class] - 2 * d, zeros)

# %% [markdown]
# ## Part two: the image in words
#
# ### 4. Channels in words
#
# PyTorch's order of axes is NCHW: images, channels, rows, columns. For bits the channels are put
# last, NHWC, and are packed: a pixel is $\lceil C/64 \rceil$ words. Then the words that a tap sees
# lie side by side, and so do those of the taps of a filter's row. Here are four images of 100
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
# ### 5. im2col
#
# The usual way to a fast convolution is to make a matrix product of it. *im2col* ("image to
# columns") writes, for every output pixel, what the filter sees there into a row; a filter is a row
# too; all pairs of rows are multiplied.


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
# `xnor_matmul` gives $9C - 2d$, as if all taps counted. What is missing is the base of each pixel
# in place of $9C$. The tails are no concern: they are 0 in image and filter, and never differ.

# %%
inside = taps_inside(H, W, 3)  # (H, W, 9)
tap_ones = np.bitwise_count(weight).sum(-1, dtype=np.int64).reshape(filters, 9)
base = C * inside.sum(-1)[..., None] + 2 * (~inside @ tap_ones.T)  # (H, W, O)
sums = products.reshape(N, H, W, filters) - 9 * C + base

assert np.array_equal(sums, convolve(x_signs, w_signs, outside=0))

# %% [markdown]
# The same numbers from the package, and those of padding with +1:

# %%
assert np.array_equal(xnor.xnor_conv2d(x, weight, C, padding=(1, 1), padding_mode="zeros"), sums)
assert np.array_equal(
    xnor.xnor_conv2d(x, weight, C, padding=(1, 1), padding_mode="ones"),
    convolve(x_signs, w_signs, outside=1),
)

# %% [markdown]
# ### 6. Addresses instead of copies
#
# im2col writes every word nine times, and the product reads it back. But the rows hold nothing
# new. In the padded image, seen as one flat array of words, each of their words has an address, and
# that address is a sum of two parts: where the pixel's first word is, and how far the tap is from
# there.

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
# A kernel can use these two tables itself, and need no rows. It is the kernel "one row, 8 columns"
# of notebook 04 with another way to find the words. Stride and dilation would be other numbers in
# the tables; the loop would not change.


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
# The package does the same with blocks of 4 pixels × 32 filters in registers, and keeps one row of
# bases for each border class rather than one for each pixel. As with the matrix product, weights
# and tables are laid out once, for images of one size. A layer of a common size shows what the copy
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
# ## Part three: what follows a convolution
#
# ### 7. Batch norm and sign: a threshold
#
# A sum is seldom the end. Batch norm and sign follow, and make a bit of it:
#
# $$\text{bit} = \left[\; \gamma\, \frac{s - \mu}{\sigma} + \beta \ge 0 \;\right].$$
#
# The expression is a straight line in $s$. For $\gamma > 0$ it rises, and the bit is 1 from some
# integer on. For $\gamma < 0$ it falls, and the bit is 1 below some integer: the opposite of being
# 1 from there on. For $\gamma = 0$ the bit is constant. So, whatever the floats are,
#
# $$\text{bit} = [\, s \ge t \,] \oplus f,$$
#
# with one integer $t$ and one bit $f$ ("flip") a channel (Umuroglu et al. 2017).
#
# Solving the inequality for $s$ is tempting and wrong now and then: the float expression is
# rounded, and its rounded value decides. There are few integers, so we ask the float expression
# itself, at all of them.

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
# A threshold need not wait until the sums are written. Since $s = \text{base} - 2d$,
#
# $$s \ge t \iff d \le \left\lfloor \frac{\text{base} - t}{2} \right\rfloor,$$
#
# so the kernel compares the differences it has just counted with a constant of the border class,
# and writes a bit. This is called a fused *epilogue*. The sums, 32 bits each, never reach memory.
#
# `prepare_conv2d` takes thresholds; `threshold` is the same as a step of its own.

# %%
separate = threshold(sums.astype(np.int32), thresholds, flip)
fused = xnor.prepare_conv2d(weight, C, (H, W), padding=(1, 1), thresholds=thresholds, flip=flip)
signs_after = xnor.run(fused, x)  # (N, H, W, 1): 48 bits a pixel

assert np.array_equal(signs_after, separate)
assert np.array_equal(unpack(signs_after, filters) > 0, is_plus(sums))
print(f"sums {sums.astype(np.int32).nbytes:,} bytes, bits {signs_after.nbytes:,}")

# %% [markdown]
# ### 8. Max-pool
#
# *Max-pool* takes the largest value of each window, here 2 × 2. Of bits the largest is 1 if any of
# them is 1: the pool is an OR, of 64 channels at a time.
#
# In a binary network the pool often stands between convolution and batch norm, and takes the
# maximum of sums. Does it still become an operation on bits? If the line of batch norm rises, the
# maximum of the sums becomes the maximum of the bits, so OR it is. If it falls ($\gamma < 0$), the
# largest sum becomes the smallest value: the minimum of the bits, and that is their AND.


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
# ## Part four: depth-wise convolution
#
# ### 9. Turn the problem by 90 degrees
#
# In a *depth-wise* convolution every channel has a filter of its own, $k \times k$ taps, and no
# sum over channels. Small networks are full of them (MobileNet), and binary ones had none for a
# long time (BD-Net).
#
# XOR and popcount do not fit. Popcount adds up the bits of one word, and the 64 bits of a word of
# channels now belong to 64 different sums. A word for each channel would hold 9 bits and 55 empty
# places.
#
# But look at a word of a pixel and the word of the same channels in a tap of the filters. Their
# XNOR is 64 products at once, each for its own channel. All that is left is to add up nine words
# *bit by bit*: bit 0 of each of the nine, bit 1 of each of the nine, and so on.

# %%
C = 128
image_signs = rng.choice(np.float32([-1, 1]), (1, 8, 8, C))
filter_signs = rng.choice(np.float32([-1, 1]), (3, 3, C))
x, weight = pack(image_signs), pack(filter_signs)
padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # words of 0

agree = np.array(
    [~(padded[:, ky : ky + 8, kx : kx + 8] ^ weight[ky, kx]) for ky in range(3) for kx in range(3)]
)  # (9, 1, 8, 8, 2): for each tap, pixel and channel, whether image and filter agree
print(agree.shape, agree.dtype)

# %% [markdown]
# ### 10. Adders made of gates
#
# A processor adds two numbers with a circuit of gates. We build the same circuit from `^`, `&` and
# `|`, and since these work on whole words, 64 circuits run side by side. This is *bit slicing*
# (Biham 1997).
#
# The *half adder* adds two bits. The sum is 0, 1 or 2, and takes two bits: one of weight 1, and the
# carry, of weight 2. The *full adder* adds three bits. Its carry is the majority of the three.


# %%
def half_adder(a, b):
    return a ^ b, a & b


def full_adder(a, b, c):
    return a ^ b ^ c, (a & b) | ((a | b) & c)


a, b, c = 0b11110000, 0b11001100, 0b10101010  # all eight cases, one in each column
one, two = full_adder(a, b, c)
for name, word in (("a", a), ("b", b), ("c", c), ("sum", one), ("carry", two)):
    print(f"{name:<6} {word:08b}")

for i in range(8):
    assert ((a >> i) & 1) + ((b >> i) & 1) + ((c >> i) & 1) == ((one >> i) & 1) + 2 * (
        (two >> i) & 1
    )

# %% [markdown]
# ### 11. Vertical counters
#
# A count from 0 to 9 takes four bits. Keep them in four words, the *bit planes* `ones`, `twos`,
# `fours`, `eights`: bit $c$ of these four words, read downwards, is the count of channel $c$. The
# count stands upright, hence *vertical counter*.
#
# To add one more bit to a counter, add it to `ones`, the carry to `twos`, the next carry to
# `fours`, and so on.


# %%
def count_one_by_one(agree):
    planes = [np.zeros_like(agree[0]) for _ in range(4)]
    for bit in agree:
        for i in range(4):
            planes[i], bit = half_adder(planes[i], bit)
    return planes


# %% [markdown]
# That is $9 \cdot 4$ half adders of two operations, 72 for each word. Most of them add a carry that
# is rarely there. Better to use full adders, which take three bits of the same weight and leave
# two, one of them of twice the weight: nothing is carried through the planes before there is enough
# of it. The carries are *saved* for later, and the scheme is called carry-save (Warren, *Hacker's
# Delight*, section 5-1; Harley and Seal).


# %%
def count_agreements(agree):
    """Nine words -> four bit planes of the counts."""
    ones_a, twos_a = full_adder(agree[0], agree[1], agree[2])
    ones_b, twos_b = full_adder(agree[3], agree[4], agree[5])
    ones_c, twos_c = full_adder(agree[6], agree[7], agree[8])
    ones, twos_d = full_adder(ones_a, ones_b, ones_c)  # no more ones
    twos_e, fours_a = full_adder(twos_a, twos_b, twos_c)
    twos, fours_b = half_adder(twos_d, twos_e)  # no more twos
    fours, eights = half_adder(fours_a, fours_b)
    return [ones, twos, fours, eights]


planes = count_agreements(agree)

assert np.array_equal(planes, count_one_by_one(agree))

# %% [markdown]
# Five full adders of five operations and two half adders of two: 29 operations for 64 counts, less
# than half an operation each. (AVX-512 computes any function of three bits in one instruction,
# `vpternlog`. A full adder is two of them.)
#
# Here are the first 24 channels of one pixel: above the agreements of the nine taps, in the middle
# the planes, below the count that stands in each column.

# %%
shown = 24
pixel_agree = unpack(agree[:, 0, 3, 4], C)[:, :shown]  # (9, shown) of ±1
pixel_planes = unpack(np.array(planes)[:, 0, 3, 4], C)[:, :shown]  # (4, shown) of ±1
counts = (pixel_agree > 0).sum(axis=0)

figure, (upper, lower) = plt.subplots(
    2, 1, figsize=(8, 4.6), height_ratios=(9, 4), layout="constrained"
)
plots.signs(pixel_agree, "agreements of the nine taps (orange: 1)", ax=upper)
upper.set(yticks=range(9), yticklabels=[f"tap {tap}" for tap in range(9)])
plots.signs(pixel_planes[::-1], "bit planes of the counter", ax=lower)
lower.set(yticks=range(4), yticklabels=["eights", "fours", "twos", "ones"])
lower.set_xticks(range(shown), counts)
lower.set_xlabel("the count in each column")
for axes, height in ((upper, 9), (lower, 4)):  # lines between the cells
    axes.vlines(np.arange(shown - 1) + 0.5, -0.5, height - 0.5, color="white", linewidth=1)
    axes.hlines(np.arange(height - 1) + 0.5, -0.5, shown - 0.5, color="white", linewidth=1)
plt.show()

assert np.array_equal((pixel_planes > 0).T @ [1, 2, 4, 8], counts)

# %% [markdown]
# ### 12. From counts to sums
#
# With $T$ taps, of which $n$ agree, the sum of products is $n - (T - n) = 2n - T$. To have it as a
# number, the planes have to be taken apart again, with their weights. This is right for pixels with
# all nine taps inside.


# %%
def numbers(planes, channels):
    """Bit planes -> the counts as integers."""
    return sum((unpack(plane, channels, np.int64) > 0) << i for i, plane in enumerate(planes))


expected = depthwise.conv2d_sums_reference(x, weight, C, padding=(1, 1))
counts = numbers(planes, C)  # (1, 8, 8, C)

assert np.array_equal((2 * counts - 9)[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1])

# %% [markdown]
# At the border the frame holds words of 0 as before. We count agreements now, and 0 agrees with the
# weights that are -1. So, of the $n$ agreements, those of the taps outside with weight -1 must not
# count, nor these taps among $T$:
#
# $$s = 2\, (n - n_\text{out}) - T = 2n - \underbrace{(T + 2\, n_\text{out})}_{\text{base}}.$$
#
# Again the base knows nothing of the image.

# %%
inside = taps_inside(8, 8, 3)  # (8, 8, 9)
is_minus = filter_signs.reshape(9, C) < 0
base = inside.sum(-1)[..., None] + 2 * (~inside @ is_minus.astype(int))  # (8, 8, C)

assert np.array_equal(2 * counts - base, expected)

# %% [markdown]
# ### 13. Thresholds on bit planes
#
# If a sign follows, the numbers are not needed. With $s = 2n - \text{base}$,
#
# $$s \ge t \iff n \ge \ell, \qquad \ell = \left\lceil \frac{t + \text{base}}{2} \right\rceil,$$
#
# and the comparison of 64 counts with 64 levels $\ell$ is a circuit as well. For four-bit numbers,
# inverting all bits of $\ell$ gives $15 - \ell$. Add this and 1 to $n$:
#
# $$n + (15 - \ell) + 1 = 16 + (n - \ell).$$
#
# The carry out of four bits, of weight 16, is 1 exactly if $n \ge \ell$. So we need an addition of
# which only the carry is of interest, and the carry of a full adder is the majority of its inputs.
# The "+ 1" is the carry that goes into the first plane.


# %%
def at_least(planes, levels):
    """Words whose bits say where the count is >= the level (0 to 15), both given as bit planes."""
    carry = ~np.zeros_like(planes[0])
    for count, level in zip(planes, levels, strict=True):
        carry = (count & ~level) | ((count | ~level) & carry)
    return carry


every = np.arange(16)
n, level = np.meshgrid(every, every)  # all pairs of four-bit numbers
four_bits = [[pack(((number >> i) & 1) * 2 - 1) for i in range(4)] for number in (n, level)]

assert np.array_equal(unpack(at_least(*four_bits), 16) > 0, n >= level)

# %% [markdown]
# Now with thresholds for our convolution. A level of 0 or less is always reached, and no count
# reaches 10 or more, so levels can be cut off at 0 and 15.

# %%
thresholds = rng.integers(-5, 6, C).astype(np.int32)
flip = rng.random(C) < 0.3

levels = np.clip((thresholds + base + 1) // 2, 0, 15)  # (8, 8, C)
level_planes = [pack(((levels >> i) & 1) * 2 - 1) for i in range(4)]
bits_after = at_least(planes, level_planes) ^ pack(np.where(flip, 1, -1))

assert np.array_equal(unpack(bits_after, C) > 0, (expected >= thresholds) != flip)

# %% [markdown]
# ### 14. The package's kernel
#
# `kernels.depthwise` is this circuit in the vocabulary of vectors, 512 channels or neighbouring
# pixels at a time. `prepare` computes bases, levels and addresses once; `conv2d_bits` and
# `conv2d_sums` run. The planes stay in registers while the taps are counted.

# %%
plan = depthwise.prepare(weight, C, (8, 8), padding=(1, 1), thresholds=thresholds, flip=flip)

assert np.array_equal(depthwise.conv2d_bits(plan, x), bits_after)
assert np.array_equal(depthwise.conv2d_sums(plan, x), expected)

# %% [markdown]
# To see what it is worth, three ways to do a layer of 16 images of 128 channels and 16 × 16 pixels:
# floats in NumPy (one product and one addition a tap), the kernel of part two with as many groups
# as channels, which uses one bit of each word, and bit planes.


# %%
def depthwise_floats(images, weight):
    """images (N, H, W, C), weight (3, 3, C) -> (N, H, W, C), padded with zeros."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros_like(images)
    for y in range(3):
        for x in range(3):
            out += padded[:, y : y + height, x : x + width] * weight[y, x]
    return out


many_signs = rng.choice(np.float32([-1, 1]), (16, 16, 16, C))
many = pack(many_signs)
plan = depthwise.prepare(weight, C, (16, 16), padding=(1, 1), thresholds=thresholds, flip=flip)
one_bit_words = pack(filter_signs.transpose(2, 0, 1)[..., None])  # (C, 3, 3, 1): a bit a word
grouped = xnor.prepare_conv2d(one_bit_words, C, (16, 16), padding=(1, 1), groups=C)

sums = depthwise.conv2d_sums(plan, many)
assert np.array_equal(sums, depthwise_floats(many_signs, filter_signs))
assert np.array_equal(sums, xnor.run(grouped, many))

products = 9 * many_signs.size
for name, function, *arguments in (
    ("floats in NumPy", depthwise_floats, many_signs, filter_signs),
    ("popcount, a bit a word", xnor.run, grouped, many),
    ("bit planes, sums", depthwise.conv2d_sums, plan, many),
    ("bit planes, bits", depthwise.conv2d_bits, plan, many),
):
    seconds = shortest(function, *arguments)
    print(f"{name:<24}{seconds * 1e3:8.3f} ms {products / seconds / 1e9:8.1f} Gbit-MAC/s")

# %% [markdown]
# Writing sums takes longer than counting: each bit of a plane has to become a part of a number.
# From bits to bits the planes are never taken apart. That is the case a network should be built
# for.

# %% [markdown]
# ## Exercises
#
# 1. How many border classes has a 5 × 5 filter with padding 2, on an image of 14 × 14? And on one
#    of 3 × 3? Predict, then count with `taps_inside`. *Hint:* count the kinds of rows first. On a
#    small image a row can be near both borders.
# 2. A ternary weight is +1, 0 or -1: two words a tap, one with the signs and one, the mask, that
#    says where the weight is not 0. Derive the sum of a row from XOR, AND and popcount, and check
#    it against floats. *Hint:* differences count only where the mask is 1, and $K$ becomes the
#    number of ones in the mask. What has this to do with the padding?
# 3. Extend `count_agreements` to the 25 taps of a 5 × 5 filter. How many planes are needed, and how
#    many operations do you get away with? *Hint:* keep a list of words for each weight; as long as
#    a list has three words, replace them by the sum of a full adder and put its carry into the next
#    list; finish with half adders. Check against `depthwise.conv2d_sums`.

# %% [markdown]
# ## Sources
#
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016), arXiv:1602.02830.
# - M. Rastegari, V. Ordonez, J. Redmon, A. Farhadi: *XNOR-Net* (2016), arXiv:1603.05279: binary
#   convolutions.
# - Y. Umuroglu et al.: *FINN* (2017), arXiv:1612.07119: batch norm and sign as a threshold,
#   max-pool as OR.
# - H. S. Warren: *Hacker's Delight*, 2nd edition (2012), section 5-1: adders on words, carry-save.
# - W. Muła, N. Kurz, D. Lemire: *Faster Population Counts Using AVX2 Instructions* (2018),
#   arXiv:1611.07612: the carry-save tree of Harley and Seal.
# - E. Biham: *A Fast New DES Implementation in Software* (1997): bit slicing.
# - D. Kim et al.: *BD-Net: Has Depth-Wise Convolution Ever Been Applied in Binary Neural Networks?*
#   (2025), arXiv:2511.17633: depth-wise convolutions in binary networks.
