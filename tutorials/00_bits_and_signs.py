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
# # Bits and signs
#
# **You will learn** why a neural network would compute with +1 and -1 only, how a row of signs
# becomes an integer, how one XOR and one count replace 64 multiplications, and what is lost when
# numbers become signs.
#
# **You need** Python, NumPy, and what a dot product is. Nothing about neural networks.
#
# **Time** about 10 minutes of reading; the cells run in a few seconds.
#
# Each step ends with a check: an `assert` that fails if the text is wrong.

# %%
import timeit

import matplotlib.pyplot as plt
import numpy as np

from tinybnn import datasets, plots

# %% [markdown]
# ## The question
#
# A neural network spends nearly all of its time on dot products: inputs are multiplied by weights
# and the products added up. Here is one with eight numbers on each side.

# %%
x = np.float32([0.9, -0.2, 0.4, 1.3, -0.7, 0.1, 0.8, -1.1])
w = np.float32([0.3, 0.6, -0.5, 0.8, 0.2, 0.9, 0.1, -0.4])
print("dot product:", x @ w)
print("bytes:      ", x.nbytes + w.nbytes)

assert np.isclose(x @ w, sum(x[i] * w[i] for i in range(8)))

# %% [markdown]
# Each number takes 32 bits. What if we keep only its sign? A sign is +1 or -1, and one bit is
# enough for that. The two rows would take 2 bytes instead of 64; a network of ten million weights
# would take 1.25 MB instead of 40 MB.
#
# So the question is: **how does one compute the dot product of two rows of signs from their bits,
# and how much faster is it?** A second question is at least as important: how much accuracy is
# left? We test that on real images.

# %% [markdown]
# ## The naive version
#
# The obvious way is to keep the signs as floats. It takes 8 multiplications and 7 additions, and
# saves nothing. We keep it as the answer that everything below must reproduce.

# %%
a = np.float32([1, -1, 1, 1, -1, 1, 1, -1])
b = np.float32([1, 1, -1, 1, 1, 1, 1, -1])
products = a * b
print("a       ", a)
print("b       ", b)
print("products", products)
print("sum     ", products.sum())

assert products.sum() == a @ b == 2

# %% [markdown]
# ## The sign of zero
#
# First: what is the sign of a number? NumPy has a function for it. On these five numbers it gives
# four different answers:

# %%
values = np.float32([-2.5, -0.0, 0.0, 3.0, np.nan])
print("x         ", values)
print("np.sign(x)", np.sign(values))
print("x >= 0    ", values >= 0)

assert np.sign(np.float32(0)) == 0
assert (values >= 0).tolist() == [False, True, True, True, False]

# %% [markdown]
# A bit has room for only two answers, so we must decide where 0 belongs. Binary networks define
#
# $$\operatorname{sign}(x) = \begin{cases} +1 & \text{if } x \ge 0 \\ -1 & \text{otherwise.}
# \end{cases}$$
#
# The comparison `x >= 0`, printed above, also settles two values that exist among floats but not in
# mathematics. Floats have a *negative zero*, which results, for example, from `-1.0 * 0.0`. It
# equals 0, so its sign is +1. And `nan`, "not a number", is what NumPy gives for infinity minus
# infinity. Every comparison with it is false, so its sign is -1. Which signs these two values get
# matters little. What matters is that every implementation gives them the same signs: otherwise two
# versions of one network give different answers.

# %%
infinity = np.float32(np.inf)
with np.errstate(invalid="ignore"):
    difference = infinity - infinity
print("-1.0 * 0.0 =", -1.0 * 0.0, "  infinity - infinity =", difference)

assert -1.0 * 0.0 == 0 and not difference >= 0 and not difference < 0

# %% [markdown]
# ## From signs to bits
#
# Write a 1 for +1 and a 0 for -1. Element 0 of the row goes to bit 0 of an integer, element 1 to
# bit 1, and so on. Bit $i$ is worth $2^i$, so the row becomes a sum of powers of two:

# %%
print(" i   a[i]   bit   worth")
for i, sign in enumerate(a):
    print(f" {i}    {sign:+.0f}     {int(sign > 0)}    {2**i if sign > 0 else 0:4}")

a_bits = 1 + 4 + 8 + 32 + 64
print(f"\nsum {a_bits}, as bits {a_bits:08b}")

assert a_bits == 0b01101101

# %% [markdown]
# Mind the direction: we write numbers with the largest power on the left, so the row stands in the
# integer **from right to left**. Any order would do, as long as both rows use the same one. This is
# the usual one, and NumPy calls it `"little"`. A Python integer has as many bits as it needs;
# NumPy's have at most 64.


# %%
def packed(signs):
    """Pack eight signs into each byte, the first one in the lowest bit."""
    return np.packbits(signs > 0, axis=-1, bitorder="little")


b_bits = int(packed(b)[0])
print(f"a {a_bits:08b}\nb {b_bits:08b}")

assert packed(a)[0] == a_bits
assert b_bits == 0b01111011

# %% [markdown]
# ## Agreements and differences
#
# A product of two signs is +1 if they are equal and -1 if they are not:
#
# | $a_i$ | $b_i$ | $a_i b_i$ | bits | xor of the bits |
# |:-:|:-:|:-:|:-:|:-:|
# | +1 | +1 | +1 | 1, 1 | 0 |
# | +1 | -1 | -1 | 1, 0 | 1 |
# | -1 | +1 | -1 | 0, 1 | 1 |
# | -1 | -1 | +1 | 0, 0 | 0 |
#
# The last column is the operation *exclusive or*, `^` in Python: 1 where two bits differ. Applied
# to integers, it works on all of their bits at once. So the ones of `a ^ b` mark the places where
# the rows differ, that is, where the product is -1.
#
# Let $d$ be the number of differences among $K$ signs. The other $K - d$ places agree. Agreements
# give +1, differences -1:
#
# $$a \cdot b = (K - d) - d = K - 2d, \qquad d = \operatorname{popcount}(a \oplus b).$$
#
# $\oplus$ is the xor, and *popcount* ("population count") is the number of ones.

# %%
differences = a_bits ^ b_bits
d = differences.bit_count()
print(f"    a {a_bits:08b}\n    b {b_bits:08b}\na ^ b {differences:08b}   {d} ones")
print(f"8 - 2 * {d} = {8 - 2 * d}")

assert 8 - 2 * d == a @ b

# %% [markdown]
# That was one example. With eight signs there are 256 rows and 65,536 pairs of rows, few enough to
# try all of them:

# %%
words = np.arange(256, dtype=np.uint8)
rows = np.float32(2) * np.unpackbits(words[:, None], axis=1, bitorder="little") - 1
by_floats = rows @ rows.T
by_bits = 8 - 2 * np.bitwise_count(words[:, None] ^ words).astype(int)
print("pairs:", by_bits.size, " results:", np.unique(by_bits))

assert np.array_equal(by_bits, by_floats)
assert np.all(by_bits % 2 == 0)

# %% [markdown]
# The results are -8, -6, ..., 8: never odd. Flipping one sign changes the sum by 2. A dot product
# of $K$ signs is even if $K$ is even and odd if $K$ is odd. It is an integer and exact in every
# order of summation. This is why, in this course, results computed from bits are compared with `==`
# and never with a tolerance.
#
# **Two traps.** The integer does not know how long the row is: eight signs and sixty-four give the
# same integer if the remaining bits are 0. Bits that are 0 in both words count as agreements, so
# $K$ must be given separately. And some books count agreements instead, with the opposite of xor
# (*XNOR*, hence the name XNOR-Net). In Python, inverting our xor, 22, gives `~22 == -23`: Python's
# integers have no highest bit at which the inversion could stop. Stay with xor.

# %%
print("K = 8: ", 8 - 2 * d)
print("K = 64:", 64 - 2 * d, "- 56 bits that belong to no sign count as agreements")

assert (64 - 2 * d) - (8 - 2 * d) == 56
assert ~22 == -23

# %% [markdown]
# ## Counting ones
#
# A processor handles 64 bits at once, a *word*. How does one count its ones? One could look at each
# bit in turn, in 64 steps. A neat trick needs only as many steps as there are ones. Subtract 1 from
# a binary number: its lowest 1 becomes 0, and the zeros to its right become ones. All other bits
# stay. The *and* of the two numbers therefore clears just that lowest 1:

# %%
word = 0b10110000
print(f"word              {word:08b}")
print(f"word - 1          {word - 1:08b}")
print(f"word & (word - 1) {word & (word - 1):08b}")

assert word & (word - 1) == 0b10100000

# %% [markdown]
# Repeat until nothing is left, and count the steps: that is your exercise 00.3. Processors have a
# single instruction for it, which counts the ones of a 64-bit word in about one clock cycle. Python
# offers it as `int.bit_count`, NumPy as `np.bitwise_count`. Together with the xor, that makes **two
# instructions for 64 products and their sum**.

# %% [markdown]
# ## What is lost
#
# Now real data: 1,797 handwritten digits of 8×8 pixels, with grey levels from 0 to 16. We subtract
# the middle grey, 8, and take the sign. An image of 64 pixels becomes 64 bits: **one machine
# word**. In the lower row of the picture, orange is +1 and blue is -1.

# %%
train, test = datasets.load("digits")
signs = {}
for name, images in (("train", train.images), ("test", test.images)):
    signs[name] = np.float32(2) * (images.reshape(-1, 64) >= 8) - 1

figure, axes = plt.subplots(2, 8, figsize=(9, 2.6))
for i in range(8):
    axes[0, i].imshow(train.images[i, 0], cmap="gray_r")
    plots.signs(signs["train"][i].reshape(8, 8), ax=axes[1, i])
    axes[0, i].set_title(str(train.labels[i]))
    axes[0, i].set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("grey")
axes[1, 0].set_ylabel("sign")
plt.show()

image_words = {name: packed(s).view(np.uint64)[:, 0] for name, s in signs.items()}
print("first image:", hex(image_words["train"][0]))

assert image_words["train"].nbytes == 8 * len(train)

# %% [markdown]
# You can still read them. Can a program? The simplest one that recognizes digits compares an image
# with all training images and answers with the label of the nearest. For grey levels, "nearest" is
# the smallest sum of squared differences. For signs, each differing place has a squared difference
# of $2^2$, so the nearest image is the one with the **fewest ones in the xor**.

# %%
grey = {
    name: np.float32(d.images.reshape(-1, 64)) for name, d in (("train", train), ("test", test))
}
distances = np.square(grey["test"][:, None] - grey["train"]).sum(axis=2)
with_grey = (train.labels[distances.argmin(axis=1)] == test.labels).mean()

differing = np.bitwise_count(image_words["test"][:, None] ^ image_words["train"])
with_signs = (train.labels[differing.argmin(axis=1)] == test.labels).mean()
print(f"nearest by grey levels: {with_grey:.1%} right,  {64 * 8} bits an image as bytes")
print(f"nearest by signs:       {with_signs:.1%} right,   64 bits an image")

assert np.array_equal(differing, np.square(signs["test"][:, None] - signs["train"]).sum(axis=2) / 4)
assert 0.9 < with_signs < with_grey

# %% [markdown]
# Each pixel loses 7 of its 8 bits, and accuracy falls by 4 points.
#
# And weights? A layer with ten outputs has one row of 64 weights for each digit, and the largest
# dot product is its answer. Let the weights of a digit be the average of its training images,
# measured from the middle grey, and then keep only their signs.


# %%
def accuracy(images, test_images, binarize):
    """How often the digit whose average fits best is the right one."""
    averages = np.stack([images[train.labels == digit].mean(axis=0) for digit in range(10)])
    weights = np.float32(2) * (averages >= 0) - 1 if binarize else averages
    return ((test_images @ weights.T).argmax(axis=1) == test.labels).mean()


centred = grey["train"] - 8, grey["test"] - 8
results = {
    "grey images, float weights": accuracy(*centred, binarize=False),
    "grey images, sign weights ": accuracy(*centred, binarize=True),
    "sign images, sign weights ": accuracy(signs["train"], signs["test"], binarize=True),
}
for name, share in results.items():
    print(f"{name} {share:.1%}")

assert list(results.values()) == sorted(results.values(), reverse=True)
assert min(results.values()) > 0.7

# %% [markdown]
# Each step loses some points. But these weights were computed as floats and rounded to signs
# afterwards. A network that is *trained* to work with signs chooses them so that the errors of many
# weights cancel, and loses much less. How to train it although a sign has no useful derivative is
# the subject of [02](02_the_gradient_of_sign.ipynb) and [03](03_first_binary_network.ipynb).

# %% [markdown]
# ## Measured
#
# We compute the dot product of two rows of a million signs in four ways: a loop in Python, NumPy's
# product of floats, NumPy on words of 64 bits, and a single Python integer with a million bits.

# %%
K = 1 << 20
rng = np.random.default_rng(0)
u, v = np.float32(2) * rng.integers(0, 2, (2, K), dtype=np.int8) - 1
u_words, v_words = packed(u).view(np.uint64), packed(v).view(np.uint64)
u_int, v_int = (int.from_bytes(words.tobytes(), "little") for words in (u_words, v_words))

ways = {
    "loop over floats": lambda: sum(p * q for p, q in zip(u.tolist(), v.tolist(), strict=True)),
    "NumPy, floats": lambda: u @ v,
    "NumPy, words": lambda: K - 2 * int(np.bitwise_count(u_words ^ v_words).sum()),
    "one Python int": lambda: K - 2 * (u_int ^ v_int).bit_count(),
}
seconds = {name: min(timeit.repeat(way, number=1, repeat=9)) for name, way in ways.items()}
print(f"{'':17} microseconds   times as fast as NumPy's floats")
for name, time in seconds.items():
    print(f"{name:17} {1e6 * time:12.0f} {seconds['NumPy, floats'] / time:16.3f}")
print(f"bytes: {u.nbytes:,} as float32, {u_words.nbytes:,} as words")

assert len({int(way()) for way in ways.values()}) == 1
assert u.nbytes == 32 * u_words.nbytes
assert seconds["NumPy, words"] < seconds["loop over floats"] / 10

# %% [markdown]
# All four agree exactly. The words always take 32 times less memory. How much faster they are
# depends on the machine: the lead over NumPy's floats is large here because the floats no longer
# fit into the memory nearest to the processor, while the words do. This is the first reason for
# one-bit networks: moving numbers often takes longer than multiplying them.

# %% [markdown]
# ## In the package
#
# `tinybnn` keeps signs in words of 64 bits: `pack` in `tinybnn.kernels.bits` packs them, in the
# order of this notebook, and `xnor_matmul` in `tinybnn.kernels.xnor` computes all dot products of
# the rows of two matrices. Here are 360 test images times 1,437 training images:

# %%
from tinybnn.kernels.bits import pack  # noqa: E402
from tinybnn.kernels.xnor import xnor_matmul  # noqa: E402

products = xnor_matmul(pack(signs["test"]), pack(signs["train"]), 64)
print(products.shape, products.dtype, "first row:", products[0, :5], "...")

assert np.array_equal(pack(signs["train"])[:, 0], image_words["train"])
assert np.array_equal(products, signs["test"] @ signs["train"].T)

# %% [markdown]
# How a matrix product of this kind is made fast is the subject of
# [04](04_xnor_and_popcount.ipynb).

# %% [markdown]
# ## Summary
#
# A sign is +1 from 0 upwards and -1 elsewhere, and takes one bit instead of 32. Two signs have a
# product of +1 where their bits agree, so the dot product of $K$ signs is $K - 2
# \operatorname{popcount}(a \oplus b)$: two instructions for 64 products. The result is an integer
# and exact. What is lost is the size of each number: on the digits, rounding to signs costs a few
# points of accuracy.

# %% [markdown]
# ## Exercises
#
# | | write | task |
# |:-|:-|:-|
# | 00.1 | `sign(x)` | the sign of each number, as float32 |
# | 00.2 | `to_integer(signs)` | a row of signs as one Python int |
# | 00.3 | `popcount(word)` | the number of ones, by operations on integers |
# | 00.4 | `dot(a, b, k)` | the dot product of two rows of signs, given as integers |
#
# Edit `mybnn/bits.py`, beside this notebook: each function's docstring says what it takes and
# returns; the body is missing. Then type in a terminal, in the folder of the course:
#
#     tinybnn course check 00      # check all four; or one: tinybnn course check 00.2
#     tinybnn course hint 00.2     # a hint; ask again for the next one, there are three
#
# Or check from here:

# %%
from tinybnn import course  # noqa: E402

course.show("00")

# %% [markdown]
# Think about:
#
# 1. A dot product of 64 signs is 0. How many places agree? Can the dot product of 63 signs be 0?
# 2. Weights of 0 and 1 instead of ±1 would need `a & b` and one popcount. What could such a layer
#    not express that a layer of signs can?
# 3. Why does the sign take the grey levels minus 8? What would happen with `sign(grey)`?

# %% [markdown]
# ## Sources
#
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016): weights and activations of ±1, and the product by XNOR and popcount.
# - M. Rastegari, V. Ordonez, J. Redmon, A. Farhadi: *XNOR-Net* (2016).
# - P. Wegner: *A technique for counting ones in a binary computer* (1960): `word & (word - 1)`.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
