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
# # XNOR and popcount: 64 products in a word
#
# **You will learn** how rows of signs are packed into machine words and what happens to leftover
# bits, how to count the ones of a word without looking at each bit, and how a matrix product of
# signs is computed on words, first in NumPy, then in a compiled loop.
#
# **You need** NumPy, matrix products, and [00](00_bits_and_signs.ipynb): signs as bits, and
# $a \cdot b = K - 2 \operatorname{popcount}(a \oplus b)$.
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

from tinybnn import datasets, plots
from tinybnn.kernels import bits, xnor

numba.set_num_threads(1)

# %% [markdown]
# ## The question
#
# A binary layer with $K$ inputs and $M$ outputs has $M$ rows of $K$ weights, all of them signs. For
# $N$ input rows, also signs, it computes all $N \cdot M$ dot products:
#
# $$y_{ij} = \sum_{k=1}^{K} a_{ik}\, b_{jk}, \qquad a_{ik}, b_{jk} \in \{-1, +1\}.$$
#
# One product and its addition to a sum are called a *MAC* (multiply and accumulate). Here are 256
# rows and 256 outputs with 4,000 inputs:

# %%
N, M, K = 256, 256, 4000
rng = np.random.default_rng(0)
a_signs = rng.choice(np.float32([-1, 1]), (N, K))
b_signs = rng.choice(np.float32([-1, 1]), (M, K))
print(f"{N * M * K:,} MACs")

assert N * M * K == 262_144_000

# %% [markdown]
# A float takes 32 bits and a sign takes one, and a processor handles words of 64 bits. **Is the
# product 64 times as fast if 64 signs are in a word?**

# %% [markdown]
# ## The naive version
#
# This is the definition, word for word. It is so slow that we use only 8 rows and 8 outputs.


# %%
def loop(a, b):
    """The dot products of all rows of a with all rows of b; lists of lists of numbers."""
    return [[sum(x * y for x, y in zip(row, w, strict=True)) for w in b] for row in a]


few_a, few_b = a_signs[:8].tolist(), b_signs[:8].tolist()
expected = a_signs @ b_signs.T

assert np.array_equal(expected[:8, :8], loop(few_a, few_b))

# %% [markdown]
# In the last lines, `@` hands the same problem to a routine of the linear algebra library, *sgemm*
# (single precision general matrix multiply). It has been tuned for decades and multiplies and adds
# 4, 8 or 16 floats in one instruction. The sums are integers far below $2^{24}$, which float32
# represents exactly, so both agree to the last bit. `expected` is what everything below must
# reproduce.
#
# Other programs can only slow a measurement down, so the shortest of several runs tells us most
# about the code.


# %%
def shortest(function, *arguments, seconds=0.2):
    """Seconds that the fastest of at least 3 runs takes."""
    function(*arguments)  # not counted: it may include compilation
    times = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - begin)
    return min(times)


rates = {}  # 10^9 MACs a second


def measure(name, products, function, *arguments):
    rates[name] = products / shortest(function, *arguments) / 1e9
    print(f"{name}: {rates[name]:,.4g} billion MACs a second")


measure("Python loop", 8 * 8 * K, loop, few_a, few_b)
measure("floats (sgemm)", N * M * K, np.matmul, a_signs, b_signs.T)

# %% [markdown]
# ## Packing: 64 signs in a word
#
# Bit 1 stands for +1 and bit 0 for -1. Sign $i$ goes to bit $i$ of the word, counted from the
# lowest one. A shift moves a bit to its place: `bit << i` is the bit times $2^i$. NumPy shifts a
# whole row at once, each bit by its own distance, and the sum is the word:

# %%
signs = np.float32([1, -1, -1, 1, 1, 1, -1, 1])
ones = (signs > 0).astype(np.uint64)
distances = np.arange(8, dtype=np.uint64)
print("signs     ", signs.astype(int))
print("ones      ", ones)
print("<< i      ", ones << distances)
word = (ones << distances).sum(dtype=np.uint64)
print("word      ", word, f"= {word:08b} in bits; the first sign is the last digit")

assert word == 1 + 8 + 16 + 32 + 128

# %% [markdown]
# Both sides of `<<` are `uint64` here, unsigned integers of 64 bits. With a mixture of signed and
# unsigned arrays, NumPy would look for a common type, find float64, and refuse to shift it.
#
# A row of $K$ signs takes $\lceil K/64 \rceil$ words: sign $64j + i$ is bit $i$ of word $j$. 100
# signs take two words. The second one uses 36 bits; the other 28 bits belong to no sign. They are
# the *tail*.

# %%
row = rng.choice(np.float32([-1, 1]), (1, 100))
words = bits.pack(row)  # the package's; yours is exercise 04.1
print(words.shape, words.dtype)
print(f"word 0 {words[0, 0]:064b}")
print(f"word 1 {words[0, 1]:064b}")

assert words.shape == (1, 2)
assert words[0, 1] < 2**36
assert (int(words[0, 1]) >> 3) & 1 == (row[0, 64 + 3] > 0)

# %% [markdown]
# The tail is 0 in every row. So two tails never differ, add nothing to the count of differences,
# and $K - 2d$ is right with the true $K$. XNOR is the opposite of XOR: 1 where bits agree. With
# XNOR the two tails of zeros *would* be counted, as agreements. That is why the formula of this
# course counts differences. A wrong tail is hard to notice: it shows only where $K$ is not a
# multiple of 64.

# %%
other = bits.pack(rng.choice(np.float32([-1, 1]), (1, 100)))
d = int(np.bitwise_count(words ^ other).sum())
agreements = int(np.bitwise_count(~(words ^ other)).sum())
print(f"{d} differences and {agreements} agreements: {d + agreements} in 100 signs?")

assert agreements == (100 - d) + 28

# %% [markdown]
# A row of the layer takes 63 words, nearly 32 times less memory than in floats:

# %%
a, b = bits.pack(a_signs), bits.pack(b_signs)
print(f"floats {a_signs.nbytes:,} bytes, words {a.nbytes:,} bytes")

assert a.shape == (N, 63) and 31 < a_signs.nbytes / a.nbytes < 32

# %% [markdown]
# ## Counting ones
#
# How many bits of a word are 1? A loop over its bits takes 64 steps. Additions that work on all
# parts of the word at once need only about six. Here is the method for a byte; read the columns of
# bits from top to bottom.
#
# First, look at the byte in pairs of bits. The number of ones in a pair is its upper bit plus its
# lower bit: 0, 1 or 2, which fits into the two bits of the pair. `byte & 0b01010101` keeps the
# lower bit of each pair, and `(byte >> 1) & 0b01010101` moves the upper ones to the same places. A
# single addition then counts all four pairs.

# %%
byte = 0b11011101
pairs = (byte & 0b01010101) + ((byte >> 1) & 0b01010101)
fours = (pairs & 0b00110011) + ((pairs >> 2) & 0b00110011)
eight = (fours & 0b00001111) + ((fours >> 4) & 0b00001111)
for name, value, width in (("byte", byte, 1), ("pairs", pairs, 2), ("fours", fours, 4)):
    text = f"{value:08b}"
    parts = [text[i : i + width] for i in range(0, 8, width)]
    print(f"{name:<6}", " | ".join(parts), "  counts:", [int(part, 2) for part in parts])
print("eight ", eight)

assert eight == byte.bit_count() == 6

# %% [markdown]
# For 64 bits, three more steps of the same kind would do (groups of 16, 32 and 64 bits). But there
# is a shortcut (Warren, *Hacker's Delight*, section 5-1). When each of the 8 bytes of a word holds
# its count, multiply the word by `0x0101010101010101`, which has a 1 in each byte. As in
# multiplication by hand, this adds up the word and 7 shifted copies of it, and all 8 counts meet in
# the highest byte. With 4 bytes instead of 8:

# %%
counts = 0x03_01_04_02  # four bytes that hold the counts 3, 1, 4, 2
product = (counts * 0x01_01_01_01) & 0xFFFFFFFF  # what lies above 32 bits is cut off
print(f"{product:08x}: the highest byte is {product >> 24}")

assert product >> 24 == 3 + 1 + 4 + 2

# %% [markdown]
# Nothing overflows on the way: a byte counts at most 8, and 64 fits into the highest byte. With
# `uint64`, bits above 64 are dropped automatically, and the same lines count the ones of *all*
# words of an array, since NumPy applies each operation to all elements.

# %% [markdown]
# ## The product of words in NumPy
#
# For one row of `a` and all rows of `b`, broadcasting does the work: `a[0] ^ b` combines the 63
# words of the row with each of the 256 rows.

# %%
differences = np.bitwise_count(a[0] ^ b)  # (256, 63)
d = differences.sum(axis=1, dtype=np.int64)
print("XOR", (a[0] ^ b).shape, " counts", differences.dtype, " first sums", (K - 2 * d)[:4])

assert np.array_equal(K - 2 * d, expected[0])

# %% [markdown]
# Three things are easy to get wrong here:
#
# - $K$ is 4000, not $64 \cdot 63 = 4032$, the number of bits that are stored.
# - `np.bitwise_count` returns bytes (`uint8`). Add up the counts of several words in a wider type.
# - $K - 2d$ may be negative, and unsigned numbers cannot be: they wrap around modulo $2^{64}$.

# %%
print(np.uint64(10) - 2 * np.uint64([3, 6]))

assert np.array_equal(np.uint64(10) - 2 * np.uint64([3, 6]), np.uint64([4, 2**64 - 2]))

# %% [markdown]
# For all pairs of rows, give each operand an axis of length 1 where the other one has its rows:
# `a[:, None, :]` has shape (256, 1, 63), `b[None, :, :]` has (1, 256, 63), and their XOR has (256,
# 256, 63). This is the plainest way to write the product. It is exercise 04.3, and the package's
# reference, against which every faster version is tested.

# %%
reference = xnor.xnor_matmul_reference(a, b, K)

assert np.array_equal(reference, expected)
measure("words in NumPy", N * M * K, xnor.xnor_matmul_reference, a, b, K)

# %% [markdown]
# That is disappointing: 64 products in each word, and yet hardly faster than floats, or even
# slower. The reason is what happens between the operations. The XOR is an array of $256 \cdot 256
# \cdot 63$ words, 33 MB, which is written to memory and read again just to run two instructions on
# each word; the counts go the same way. The time goes into moving data.

# %% [markdown]
# ## The better version: a compiled loop
#
# In a compiled loop, a word is used while it is in a register of the processor and never goes to
# memory. *Numba* compiles a Python function to machine code when it is called for the first time:
# write `@numba.njit` above it.
#
# To see this on real data, let us find for each test digit the most similar training digit. Each
# image has 64 pixels of 17 grey levels; comparing each with three levels (4, 8 and 12) gives 192
# signs, three words. The most similar images are those with the fewest differences.

# %%
train, test = datasets.load("digits")


def words_of(images):
    """Images (N, 1, 8, 8) -> (N, 3) words: is each pixel at least 4, 8, 12?"""
    levels = [images.reshape(len(images), 64) >= level for level in (4, 8, 12)]
    return bits.pack(np.concatenate(levels, axis=1) * np.float32(2) - 1)


train_words, test_words = words_of(train.images), words_of(test.images)
print(train_words.shape, test_words.shape)

# %% [markdown]
# `count_ones` is the package's population count of one word for compiled code. The shifts and masks
# of the section above work as well, in a small function with `@numba.njit`: the compiler recognises
# them and replaces them by the processor's own instruction, where there is one.

# %%
from tinybnn.kernels.machine.selection import count_ones  # noqa: E402


@numba.njit
def nearest(a, b):
    """For each row of a: the number of the row of b with the fewest differences."""
    found = np.empty(len(a), np.int64)
    for i in range(len(a)):
        fewest = 64 * a.shape[1] + 1
        for j in range(len(b)):
            differences = 0
            for w in range(a.shape[1]):
                differences += count_ones(a[i, w] ^ b[j, w])
            if differences < fewest:
                fewest, found[i] = differences, j
    return found


begin = time.perf_counter()
found = nearest(test_words, train_words)
first = time.perf_counter() - begin
second = shortest(nearest, test_words, train_words)
accuracy = (train.labels[found] == test.labels).mean()
print(f"first call {first * 1e3:,.0f} ms (with compilation), later ones {second * 1e3:,.1f} ms")
print(f"{accuracy:.1%} of the test digits have the label of their nearest training digit")

all_differences = np.bitwise_count(test_words[:, None] ^ train_words[None]).sum(axis=2, dtype=int)
assert np.array_equal(found, all_differences.argmin(axis=1))
assert accuracy > 0.85 and first > second

# %% [markdown]
# Nothing is stored but the result: `differences` is a register. The compiled function is defined at
# the top level of the file. Inside another function it would be compiled again at each call of that
# function, and every call would take as long as the first one here.

# %%
assert np.array_equal(nearest(a, b), expected.argmax(axis=1))  # fewest differences: largest sum
measure("compiled loop", N * M * K, nearest, a, b)

# %% [markdown]
# ## Measured
#
# The package goes further still, in two steps: `prepare_matmul` lays out the weights once, and
# `run` computes.

# %%
prepared = xnor.prepare_matmul(b, K)
assert np.array_equal(xnor.run(prepared, a), expected)
measure("the package", N * M * K, xnor.run, prepared, a)

print(f"\n{'':16}{'times the loop':>18}{'times sgemm':>14}")
for name, rate in rates.items():
    print(f"{name:<16}{rate / rates['Python loop']:18,.0f}{rate / rates['floats (sgemm)']:14.2f}")

assert rates["compiled loop"] > 20 * rates["Python loop"]
assert rates["the package"] > rates["words in NumPy"]

# %%
figure, axes = plt.subplots(figsize=(8, 2.4), layout="constrained")
colours = [plots.MINUS, plots.MINUS, plots.PLUS, plots.PLUS, plots.PLUS]
axes.barh(list(rates), list(rates.values()), color=colours)
axes.set(xscale="log", xlabel="billion MACs a second, one core (blue: numbers, orange: words)")
axes.invert_yaxis()
axes.grid(axis="x", color="0.92")
axes.set_axisbelow(True)
plt.show()

# %% [markdown]
# So packing alone does not make the product 64 times as fast; in NumPy it may not be faster at all.
# Between "words in NumPy" and "compiled loop", only the place of intermediate results changes, from
# memory to registers. How the last bar is reached, and why nothing goes much beyond it, is the
# subject of [04b](04b_a_product_as_fast_as_the_machine.ipynb).

# %% [markdown]
# ## In the package
#
# | here | there |
# |---|---|
# | packing | [`kernels.bits.pack`](../tinybnn/kernels/signs/bits.py) |
# | the product in NumPy | [`xnor.xnor_matmul_reference`](../tinybnn/kernels/signs/xnor.py) |
# | the compiled product | [`prepare_matmul` and `run`](../tinybnn/kernels/signs/xnor.py) |
# | a layer that uses it | [`nn.BinaryLinear`](../tinybnn/nn/binary.py) |

# %%
for k in (1, 63, 64, 65, 4000):
    rows, weights = a_signs[:5, :k], b_signs[:7, :k]
    sums = xnor.xnor_matmul(bits.pack(rows), bits.pack(weights), k)
    assert np.array_equal(sums, rows @ weights.T)
print("the last sums:", sums[0])

# %% [markdown]
# ## Summary
#
# A row of $K$ signs is $\lceil K/64 \rceil$ words, with zeros in the tail. A dot product is
# $K - 2d$, with the true $K$. The ones of a word are counted by adding up its parts in parallel. In
# NumPy the product of words is no faster than that of floats, since all differences go to memory
# and back. In a compiled loop they stay in registers, which makes the same operations several times
# as fast.

# %% [markdown]
# ## Exercises
#
# | | write | task |
# |:-|:-|:-|
# | 04.1 | `pack(signs)` | rows of signs as rows of words, with a tail of zeros |
# | 04.2 | `popcount_words(words)` | ones in each word, by shifts, `&` and `+` |
# | 04.3 | `xnor_matmul(a, b, k)` | all dot products of packed rows, in NumPy |
# | 04.4 | `xnor_matmul_fast(a, b, k)` | the same in a compiled loop; its speed is checked |
#
# Edit `mybnn/packing.py`, beside this notebook, then type in a terminal, in the folder of the
# course:
#
#     tinybnn course check 04      # or one: tinybnn course check 04.2
#     tinybnn course hint 04.2     # three hints, one after the other
#
# Or check from here:

# %%
from tinybnn import course  # noqa: E402

course.show("04")

# %% [markdown]
# Think about:
#
# 1. With XNOR, the product would be $2 \operatorname{popcount}(\overline{a \oplus b}) - K$. For $K
#    = 4000$ all results are wrong by the same number. Which one?
# 2. The 256 rows of `a` are 129 KB as words. How large is the array of all differences, and how
#    does it grow if the number of rows and of outputs doubles?
# 3. A layer has 10 inputs. How much of a word is used, and what would you do with many such layers?

# %% [markdown]
# ## Sources
#
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016), arXiv:1602.02830: products of signs by XNOR and popcount, and a kernel for them.
# - M. Rastegari, V. Ordonez, J. Redmon, A. Farhadi: *XNOR-Net* (2016), arXiv:1603.05279: the same
#   for convolutions.
# - H. S. Warren: *Hacker's Delight*, 2nd edition (2012), chapter 5: counting bits.
