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
# # Depth-wise convolutions on bit planes
#
# **You will learn** how a depth-wise convolution, for which XOR and popcount are of no use, is
# computed with vertical counters: adders made of `^`, `&` and `|`, 64 of them in a word.
#
# **You need** [05](05_convolutions_on_bits.ipynb): convolutions on words, and the frame of zeros.
# None of this is needed for the chapters up to 09; [10](10_depthwise_and_158_bit.ipynb) trains such
# layers.
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

from tinybnn import plots
from tinybnn.kernels import depthwise, xnor
from tinybnn.kernels.bits import pack, unpack

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
# In a *depth-wise* convolution every channel has its own filter of $k \times k$ taps, and nothing
# is summed over channels. Small networks are full of them (MobileNet), but binary networks had none
# for a long time (BD-Net).
#
# XOR and popcount do not fit. Popcount adds up the bits of one word, and the 64 bits of a word of
# channels now belong to 64 different sums. A word for each channel would hold 9 bits and 55 empty
# places. **How can we add up bits that are in different words?**

# %%
C = 128
image_signs = rng.choice(np.float32([-1, 1]), (1, 8, 8, C))
filter_signs = rng.choice(np.float32([-1, 1]), (3, 3, C))
x, weight = pack(image_signs), pack(filter_signs)
print("image", x.shape, "filters", weight.shape)

assert x.shape == (1, 8, 8, 2) and weight.shape == (3, 3, 2)

# %% [markdown]
# ## The naive version
#
# One product and one addition for each tap, in floats. This is the reference.


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


expected = depthwise_floats(image_signs, filter_signs).astype(int)
assert np.array_equal(expected, depthwise.conv2d_sums_reference(x, weight, C, padding=(1, 1)))

# %% [markdown]
# ## Turn the problem by 90 degrees
#
# Take a word of a pixel and the word of the same channels in a tap of the filters. Their XNOR gives
# 64 products at once, one for each channel. It only remains to add up nine words *bit by bit*: bit
# 0 of each of the nine, bit 1 of each of the nine, and so on.

# %%
padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # words of 0

agree = np.array(
    [~(padded[:, ky : ky + 8, kx : kx + 8] ^ weight[ky, kx]) for ky in range(3) for kx in range(3)]
)  # (9, 1, 8, 8, 2): for each tap, pixel and channel, whether image and filter agree
print(agree.shape, agree.dtype)

both = image_signs[0, 3, 4] * filter_signs[1, 1]  # the tap in the middle, at pixel (3, 4)
assert np.array_equal(unpack(agree[4, 0, 3, 4], C), both)

# %% [markdown]
# ## Adders made of gates
#
# A processor adds two numbers with a circuit of gates. We build the same circuit from `^`, `&` and
# `|`, and since these work on whole words, 64 circuits run side by side. This is *bit slicing*
# (Biham 1997).
#
# The *half adder* adds two bits. The sum is 0, 1 or 2, and takes two bits: one of weight 1, and the
# carry, which has weight 2. The *full adder* adds three bits. Its carry is the majority of the
# three.


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
# ## The better version: vertical counters
#
# A count from 0 to 9 takes four bits. Keep them in four words, the *bit planes* `ones`, `twos`,
# `fours`, `eights`: bit $c$ of these four words, read downwards, is the count of channel $c$. The
# digits of a count are stacked vertically, hence *vertical counter*.
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
# That is $9 \cdot 4$ half adders of two operations, 72 operations for each word. Most of them add a
# carry that is rarely 1. Full adders are better: they take three bits of the same weight and leave
# two, one of them of twice the weight, so a carry can wait until three bits of its weight are there
# to be added. The carries are *saved* for later, and the scheme is called carry-save (Warren,
# *Hacker's Delight*, section 5-1; Harley and Seal).


# %%
def count_agreements(agree):
    """Nine words -> four bit planes of the counts."""
    ones_a, twos_a = full_adder(agree[0], agree[1], agree[2])
    ones_b, twos_b = full_adder(agree[3], agree[4], agree[5])
    ones_c, twos_c = full_adder(agree[6], agree[7], agree[8])
    ones, twos_d = full_adder(ones_a, ones_b, ones_c)  # no ones left to add
    twos_e, fours_a = full_adder(twos_a, twos_b, twos_c)
    twos, fours_b = half_adder(twos_d, twos_e)  # no twos left to add
    fours, eights = half_adder(fours_a, fours_b)
    return [ones, twos, fours, eights]


planes = count_agreements(agree)

assert np.array_equal(planes, count_one_by_one(agree))

# %% [markdown]
# Five full adders of five operations and two half adders of two: 29 operations for 64 counts, less
# than half an operation each. (AVX-512 computes any function of three bits in one instruction,
# `vpternlog`. A full adder takes two of these.)
#
# Here are the first 24 channels of one pixel: at the top the agreements of the nine taps, in the
# middle the planes, at the bottom the count in each column.

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
# ## From counts to sums
#
# If $n$ of $T$ taps agree, the sum of products is $n - (T - n) = 2n - T$. To get a number, the
# planes have to be taken apart again, each with its weight. This is right for pixels with all nine
# taps inside.


# %%
def numbers(planes, channels):
    """Bit planes -> the counts as integers."""
    return sum((unpack(plane, channels, np.int64) > 0) << i for i, plane in enumerate(planes))


counts = numbers(planes, C)  # (1, 8, 8, C)

assert np.array_equal((2 * counts - 9)[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1])

# %% [markdown]
# At the border the frame holds words of 0 as before. We count agreements now, and 0 agrees with the
# weights that are -1. So the $n_\text{out}$ agreements of outside taps with weight -1 must not
# count, and $T$ is only the number of taps inside:
#
# $$s = 2\, (n - n_\text{out}) - T = 2n - \underbrace{(T + 2\, n_\text{out})}_{\text{base}}.$$
#
# Again the base does not depend on the image.


# %%
def taps_inside(height, width, size):
    """(H, W, k * k) bool: which taps of the filter fall inside the image."""
    frame = size // 2
    row = np.arange(height)[:, None] + np.arange(size) - frame  # (H, k)
    column = np.arange(width)[:, None] + np.arange(size) - frame  # (W, k)
    rows, columns = (row >= 0) & (row < height), (column >= 0) & (column < width)
    both = rows[:, None, :, None] & columns[None, :, None, :]  # (H, W, k, k)
    return both.reshape(height, width, size * size)


inside = taps_inside(8, 8, 3)  # (8, 8, 9)
is_minus = filter_signs.reshape(9, C) < 0
base = inside.sum(-1)[..., None] + 2 * (~inside @ is_minus.astype(int))  # (8, 8, C)

assert np.array_equal(2 * counts - base, expected)

# %% [markdown]
# ## Thresholds on bit planes
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
# The carry out of four bits, of weight 16, is 1 exactly if $n \ge \ell$. So we need only the carry
# of an addition, and the carry of a full adder is the majority of its inputs. The "+ 1" is the
# carry into the first plane.


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
# Now we apply thresholds to our convolution. A level of 0 or less is always reached, and no count
# reaches 10 or more, so levels can be clipped to 0 and 15.

# %%
thresholds = rng.integers(-5, 6, C).astype(np.int32)
flip = rng.random(C) < 0.3

levels = np.clip((thresholds + base + 1) // 2, 0, 15)  # (8, 8, C)
level_planes = [pack(((levels >> i) & 1) * 2 - 1) for i in range(4)]
bits_after = at_least(planes, level_planes) ^ pack(np.where(flip, 1, -1))

assert np.array_equal(unpack(bits_after, C) > 0, (expected >= thresholds) != flip)

# %% [markdown]
# ## Measured
#
# To see what this gains, we compute a layer of 16 images of 128 channels and 16 × 16 pixels in
# three ways: floats in NumPy (one product and one addition per tap), the kernel of 05b with as many
# groups as channels, which uses one bit of each word, and bit planes.


# %%
many_signs = rng.choice(np.float32([-1, 1]), (16, 16, 16, C))
many = pack(many_signs)
plan = depthwise.prepare(weight, C, (16, 16), padding=(1, 1), thresholds=thresholds, flip=flip)
one_bit_words = pack(filter_signs.transpose(2, 0, 1)[..., None])  # (C, 3, 3, 1): one bit per word
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
# From bits to bits, the planes are never taken apart. Networks should be built for this case.

# %% [markdown]
# ## In the package
#
# [`kernels/signs/depthwise.py`](../tinybnn/kernels/signs/depthwise.py) is this circuit in the
# vocabulary of vectors, for 512 channels or neighbouring pixels at a time. `prepare` computes
# bases, levels and addresses once; `conv2d_bits` and `conv2d_sums` run. The planes stay in
# registers while the taps are counted. The layer is
# [`nn.BinaryDepthwiseConv2d`](../tinybnn/nn/binary.py).

# %%
plan = depthwise.prepare(weight, C, (8, 8), padding=(1, 1), thresholds=thresholds, flip=flip)

assert np.array_equal(depthwise.conv2d_bits(plan, x), bits_after)
assert np.array_equal(depthwise.conv2d_sums(plan, x), expected)

# %% [markdown]
# ## Summary
#
# The XNOR of a pixel's word and a tap's word gives 64 products that belong to 64 different sums. A
# circuit of adders whose wires are words adds up such words bit by bit: 29 operations for nine taps
# and 64 channels. The counts stand vertically in four bit planes; a comparison with a threshold is
# a circuit as well, so from bits to bits no number is ever written.

# %% [markdown]
# ## Exercises
#
# The exercises that check themselves are those of [05](05_convolutions_on_bits.ipynb). Think about:
#
# 1. Extend `count_agreements` to the 25 taps of a 5 × 5 filter. How many planes are needed, and how
#    few operations can you manage with? *Hint:* keep a list of words for each weight; as long as a
#    list has three words, replace them by the sum of a full adder and put its carry into the next
#    list; finish with half adders. Check against `depthwise.conv2d_sums`.
# 2. Popcount itself can be built this way. Which step of `popcount_words` in 04 adds vertical
#    numbers, and which steps add numbers whose bits lie side by side?

# %% [markdown]
# ## Sources
#
# - H. S. Warren: *Hacker's Delight*, 2nd edition (2012), section 5-1: adders on words, carry-save.
# - W. Muła, N. Kurz, D. Lemire: *Faster Population Counts Using AVX2 Instructions* (2018),
#   arXiv:1611.07612: the carry-save tree of Harley and Seal.
# - E. Biham: *A Fast New DES Implementation in Software* (1997): bit slicing.
# - D. Kim et al.: *BD-Net: Has Depth-Wise Convolution Ever Been Applied in Binary Neural Networks?*
#   (2025), arXiv:2511.17633: depth-wise convolutions in binary networks.
