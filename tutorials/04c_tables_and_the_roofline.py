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
# # Tables instead of counting, and the roofline
#
# **You will learn** how to compute a product of signs where no instruction counts bits, by looking
# up four signs at a time; and how to tell whether a program is limited by its arithmetic, by its
# memory, or by neither.
#
# **You need** [04b](04b_a_product_as_fast_as_the_machine.ipynb): rungs, panels, register blocks.
# None of this is needed for the chapters that follow.
#
# **Time** about 15 minutes of reading; the cells run for about 20 seconds.

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # one core

# %%
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import numba
import numpy as np

from tinybnn import plots
from tinybnn.kernels import bits, xnor
from tinybnn.kernels.machine import shuffles
from tinybnn.kernels.machine.selection import count_ones
from tinybnn.kernels.machine.shuffles import add_three_look_ups, add_tile, has_shuffles
from tinybnn.kernels.signs.prepared import best_method
from tinybnn.kernels.simd import cpu_kind, load, store, zero_words

numba.set_num_threads(1)

# %% [markdown]
# ## The question
#
# In 04b the product of signs came near the peak of XOR, popcount and addition. But where no
# instruction counts the bits of a vector, on all processors with AVX2 and no AVX-512, a population
# count takes about ten instructions, and savings on loads hardly matter in comparison. **Is there a
# way not to count at all?** And, for all rungs: **what limits them?**
#
# `climb` measures a rung and records the result for the picture at the end. Its third argument is
# the number of bytes that the rung's instructions load and store per product. Here are four rungs
# of 04b again.

# %%
M, N, K = 256, 256, 4000
rng = np.random.default_rng(0)
a_signs = rng.choice(np.float32([-1, 1]), (M, K))
b_signs = rng.choice(np.float32([-1, 1]), (N, K))
expected = a_signs @ b_signs.T
a, b = bits.pack(a_signs), bits.pack(b_signs)
W = a.shape[1]


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


ladder = []  # (name, products per byte, Gbit-MAC/s)


def climb(name, products, bytes_per_product, function, *arguments):
    rate = products / shortest(function, *arguments) / 1e9
    ladder.append((name, 1 / bytes_per_product, rate))
    print(f"{name}: {rate:,.4g} Gbit-MAC/s")


@numba.njit
def nearest(a, b):
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


prepared = xnor.prepare_matmul(b, K, method="counting")
climb("2 floats (sgemm)", M * N * K, 8, np.matmul, a_signs, b_signs.T)
climb("3 words in NumPy", M * N * K, 34 / 64, xnor.xnor_matmul_reference, a, b, K)
climb("4 loop on words", M * N * K, 16 / 64, nearest, a, b)
climb("7 four rows, 32 columns", M * N * K, 288 / 8192, xnor.run, prepared, a)

assert np.array_equal(xnor.xnor_matmul_reference(a, b, K), expected)
assert np.array_equal(nearest(a, b), expected.argmax(axis=1))
assert np.array_equal(xnor.run(prepared, a), expected)

# %% [markdown]
# ## The naive version: a table in NumPy
#
# Cut each row into *nibbles*, groups of 4 bits. There are $16 \cdot 16$ possible pairs of nibbles,
# and a table can hold the number of differences of each pair:


# %%
def nibbles(words):
    """(rows, W) words -> (rows, 16 W): the bits of each word in groups of four."""
    octets = words.view(np.uint8)
    return np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(words), -1)


number = np.arange(16)
differences = np.bitwise_count(number[:, None] ^ number).astype(np.uint8)
print(differences)

four_a, four_b = nibbles(a), nibbles(b)
looked_up = differences[four_a[:4, None, :], four_b[None]].sum(axis=2, dtype=np.int64)
assert np.array_equal(K - 2 * looked_up, expected[:4])

# %% [markdown]
# In NumPy this is slow: indexing costs far more than four signs save. But processors have an
# instruction for it, the *byte shuffle* (`vpshufb`). It takes one register as a table of 16 bytes,
# and looks up the nibble in each byte of another register: 32 look-ups in one instruction with
# AVX2, 64 with AVX-512. A row of `differences` is such a table; the nibbles of 32 columns of `b`
# are such a register.
#
# Entries are at most 4 and need three bits, so a byte has room for two: a table can serve two rows
# of `a` at once, row $i$ in the lower half of its bytes and row $i + 1$ in the upper half. There
# are 256 tables, one for each pair of nibbles, 4 KB in all. For each pair of rows, we note before
# the product which table each place needs, and use these notes for all columns.

# %%
pair = np.arange(256)
tables = (differences[pair & 15] | differences[pair >> 4] << 4).reshape(-1)  # of 16 bytes each
places = 16 * (four_a[::2] | four_a[1::2].astype(np.uint16) << 4)  # (M/2, 16 W): where each begins
places = places.reshape(-1).view(np.uint64)  # four places per word

# %% [markdown]
# ## The better version: shuffles
#
# The work for a nibble of two rows and 32 columns is then two instructions, a shuffle and an
# addition. Two details remain; two words of the vocabulary take care of them:
#
# - Half a byte holds at most 15, enough for three look-ups. `add_three_look_ups` adds up three,
#   then adds the result to one vector of totals and, shifted by half a byte, to another. These two
#   vectors are a *tile*. Bytes of the first one overflow, but together the two determine the counts
#   of both rows.
# - This works for counts up to 255, that is, for 63 look-ups. After that many, `add_tile` writes
#   16-bit sums to memory: those of row $i$, then those of row $i + 1$. It takes the even bytes of a
#   vector before the odd ones, since that needs no shuffle. For columns to come out in order, a
#   panel holds them in the order 0, 16, 1, 17 and so on.


# %%
AT_ONCE = shuffles.BYTES  # look-ups per instruction
zero_tile = shuffles.zero_tile_of(AT_ONCE)  # for that many columns


@numba.njit
def by_tables(places, tables, panels, length, sums):
    pairs, columns = 4 * len(places) // length, len(panels) // length
    for j in range(0, columns, AT_ONCE):
        for i in range(pairs):
            to = 2 * (j * pairs + i * AT_ONCE)
            for start in range(0, length, 63):
                tile = zero_tile()
                for k in range(start, min(start + 63, length), 3):
                    at = j * length + k * AT_ONCE
                    tile = add_three_look_ups(tile, i * length + k, places, tables, panels, at)
                add_tile(sums, to, to, tile)


if has_shuffles():
    G = 16 * W  # nibbles in a row, a multiple of 3
    order = np.arange(AT_ONCE).reshape(2, -1).T.reshape(-1)  # 0, AT_ONCE / 2, 1, ...
    columns = four_b.reshape(N // AT_ONCE, AT_ONCE, G)[:, order]
    panels_of_nibbles = np.ascontiguousarray(columns.transpose(0, 2, 1)).reshape(-1)
    counted = np.zeros(M * N, np.uint16)
    by_tables(places, tables, panels_of_nibbles, G, counted)

    found = counted.reshape(N // AT_ONCE, M, AT_ONCE).transpose(1, 0, 2).reshape(M, N)
    assert np.array_equal(K - 2 * found.astype(np.int64), expected)
    bytes_per_product = (2 + 16 + AT_ONCE) / (8 * AT_ONCE)
    climb(
        "8 tables, two rows", M * N * K, bytes_per_product, by_tables, places, tables,
        panels_of_nibbles, G, counted,
    )  # fmt: skip
else:
    print("This processor has no shuffles of 32 bytes: the ladder ends with rung 7.")

# %% [markdown]
# Which rung is higher, 7 or 8, depends on the processor, not on the algorithm. With AVX2 alone,
# where rungs 4 to 7 hardly differ, the ladder continues here. With VPOPCNTDQ it is a step down: an
# instruction that counts 512 bits beats one that looks up 64 nibbles.
#
# ## Two limits
#
# **Arithmetic.** `xnor.register_peak` runs the instructions of a kernel with all operands in
# registers: XOR, popcount and addition for counting; for tables, repeated look-ups in the same few
# tables.
#
# **Data.** Operands have to arrive, from a cache or from memory. How many bytes per second can the
# core load? The kernel below only loads and adds up.


# %%
peaks = {"counting": max(xnor.register_peak(method="counting") for _ in range(5)) / 1e9}
if has_shuffles():
    peaks["look-ups"] = max(xnor.register_peak(method="look_ups") for _ in range(5)) / 1e9
for name, found in peaks.items():
    print(f"register peak of {name}: {found:,.0f} Gbit-MAC/s")
peak = max(peaks.values())


def aligned(count):
    """Words of 1; the first one begins a cache line of 64 bytes."""
    room = np.ones(count + 8, np.uint64)
    start = -room.ctypes.data % 64 // 8
    return room[start : start + count]


@numba.njit
def read(words, times):
    s0, s1, s2, s3 = zero_words(), zero_words(), zero_words(), zero_words()
    for _ in range(times):
        for i in range(0, len(words), 32):
            s0 += load(words, i)
            s1 += load(words, i + 8)
            s2 += load(words, i + 16)
            s3 += load(words, i + 24)
    total = np.zeros(8, np.uint64)
    store(total, 0, s0 + s1 + s2 + s3)
    return total


def bandwidth(size):
    """GB/s at which an array of ``size`` bytes is read again and again."""
    words, times = aligned(size // 8), max(1, 2**24 // size)
    assert read(words, times).sum() == len(words) * times
    return words.nbytes * times / shortest(read, words, times) / 1e9


sizes = {"first-level cache": 2**14, "memory": 2**27}
speed = {name: bandwidth(size) for name, size in sizes.items()}
for name, found in speed.items():
    print(f"{name:<20} {sizes[name] / 2**10:9,.0f} KB {found:6.0f} GB/s")

# %% [markdown]
# ## The roofline
#
# Let $I$ be the number of products per byte moved, the *intensity* of a program. A bandwidth of $B$
# bytes per second supplies operands for at most $B \cdot I$ products per second, and with a peak of
# $P$ at most $P$ can be computed:
#
# $$\text{rate} \le \min(P,\; B \cdot I).$$
#
# On logarithmic axes this is a slope that ends in a flat roof, hence *roofline* (Williams, Waterman
# and Patterson 2009). A program under the slope is *bound by memory*: only a higher intensity helps
# it. One under the flat part is *bound by arithmetic*. The corner is at $I = P/B$.
#
# For the ladder, we count the bytes that instructions load and store:
#
# | rung | bytes | products | intensity |
# |---|---|---|---|
# | 1 Python loop | 2 references of 8 | 1 | 1/16 |
# | 3 words in NumPy | XOR: 16 in, 8 out; popcount: 8 in, 1 out; sum: 1 in | 64 | 1.9 |
# | 4 loop on words | 2 words | 64 | 4 |
# | 5 one row, 8 columns | a word and a vector, 8 + 64 | 512 | 7.1 |
# | 6 four rows, 8 columns | 4 words and a vector, 32 + 64 | 2048 | 21 |
# | 7 four rows, 32 columns | 4 words and 4 vectors, 32 + 256 | 8192 | 28 |
# | 8 tables, two rows | AVX2: a place, a table and a vector, 2 + 16 + 32 | 256 | 5.1 |
#
# Floats (rung 2) appear as a line, because the blocking of sgemm is up to the library.
#
# `a` and `b` are 130 KB each and stay in a cache. For a case that is bound by memory, take a layer
# with 64 MB of packed weights, and let 1, 4, 16, 64 rows pass through it. The weights come from
# memory once in each run, and $m$ rows share them: 64 products per word and row, hence $8m$
# products per byte, or a little less if the bytes of the rows and sums are counted.

# %%
inputs, outputs = 8192, 65536
weights = rng.integers(0, 2**64, (outputs, inputs // 64), np.uint64)
large = xnor.prepare_matmul(weights, inputs)

batches = []  # (rows, products per byte, Gbit-MAC/s)
for rows in (1, 4, 16, 64):
    x = rng.integers(0, 2**64, (rows, inputs // 64), np.uint64)
    y = np.empty((rows, outputs), np.int32)
    products = rows * outputs * inputs
    rate = products / shortest(xnor.run, large, x, y, seconds=0.2) / 1e9
    batches.append((rows, products / (weights.nbytes + x.nbytes + y.nbytes), rate))
    print(f"rows {rows:2}: {rate:7,.0f} Gbit-MAC/s, {rate / peak:.0%} of the register peak")

first = xnor.xnor_matmul_reference(x[:1], weights[:100], inputs)
assert np.array_equal(y[:1, :100], first)

# %% [markdown]
# ## Measured

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
for axes, low, high in ((left, 1, 256), (right, 2, 2048)):
    intensity = np.geomspace(low, high, 200)
    for name, style in (("first-level cache", "-"), ("memory", "--")):
        roof = np.minimum(peak, speed[name] * intensity)
        axes.plot(intensity, roof, style, color="0.35", label=f"roof: {name}")
    axes.axhline(ladder[0][2], color=plots.MINUS, linestyle=":", label="2 floats (sgemm)")
    axes.set(xscale="log", yscale="log", ylim=(ladder[0][2] / 3, peak * 3))
    axes.grid(color="0.92")

for name, x, rate in ladder[1:]:
    left.plot(x, rate, "o", color=plots.PLUS, markeredgecolor="0.3")
    left.annotate(name[0], (x, rate), (6, -11), textcoords="offset points")
if has_shuffles():
    left.axhline(peaks["look-ups"], color="0.35", linestyle="-.", label="peak of look-ups")
left.set(xlabel="products a byte, between core and cache", ylabel="Gbit-MAC/s", title="The ladder")
left.legend(loc="lower right", fontsize=8)

for rows, x, rate in batches:
    right.plot(x, rate, "s", color=plots.PLUS, markeredgecolor="0.3")
    right.annotate(f"{rows} row{'s' * (rows > 1)}", (x, rate), (6, -11), textcoords="offset points")
right.set(xlabel="products a byte, between memory and core", title="Weights from memory")
plt.show()

corner = peak / speed["memory"]
print(f"corner of the memory's roof: {corner:.0f} products a byte, about {corner / 8:.0f} rows")
assert batches[-1][1] > 40 * batches[0][1]  # 64 rows share the weights that one row waits for

# %% [markdown]
# What bounds each rung?
#
# - **Words in NumPy**: 33 MB of differences are written and read, so the dashed roof applies, and
#   the rung is not far below it: bound by memory, or by the largest cache where that is large
#   enough.
# - **Loop on words**: the data are in caches, and the roof is higher than this rung. It loses time
#   at the ends of rows and in adding up the lanes. The Python loop is even further below every
#   roof. The roofline shows that something else is wrong; it does not say what.
# - **Blocks**: bound by arithmetic. The point touches the flat roof of its instructions or comes
#   near it; only other instructions could gain more.
# - **Tables**: other instructions, with a peak of their own. Where no instruction counts the bits
#   of a vector, they lift the roof; elsewhere they are not needed.
#
# On the right: with one row the kernel is bound by memory, and runs about as fast as weights
# arrive. More rows reuse weights that have already arrived and move the point along the slope,
# towards the flat roof. Near the corner, waiting and computing take about equally long and do not
# overlap completely. Left of the corner, with one image at a time, a better kernel does not help,
# only fewer bytes do. This is the second reason for bits: the same weights take 32 times fewer
# bytes than in float32.

# %% [markdown]
# ## In the package
#
# The package has both kernels, and a third one that counts the bits of bytes. It uses the one that
# suits the processor for which Numba compiles; the integers are the same. What decides is what one
# instruction can do: with VPOPCNTDQ, count the bits of a vector of words (counting); with AVX2,
# look up 32 nibbles (look-ups); on ARM64, count the bits of 16 bytes (counting bytes).
# [`kernels/signs/look_ups.py`](../tinybnn/kernels/signs/look_ups.py) takes four vectors of columns
# at a time, so that each table is loaded for four shuffles.

# %%
print(f"this processor has {cpu_kind()}; the package takes ", end="")
print(best_method().replace("_", " "))
chosen = xnor.prepare_matmul(b, K)

assert np.array_equal(xnor.run(chosen, a), expected)
package = M * N * K / shortest(xnor.run, chosen, a) / 1e9
print(f"{package:,.0f} Gbit-MAC/s")
assert package > 0.5 * max(rate for _, _, rate in ladder)

# %% [markdown]
# To step through it, turn compilation off for the whole process: start your script with
# `NUMBA_DISABLE_JIT=1 python -m pdb script.py` and set a breakpoint in the kernel. All kernels of
# the package run this way too, with the same result:

# %%
script = """
import numba, numpy as np
from tinybnn.kernels import bits, xnor

rng = np.random.default_rng(0)
a, b = rng.normal(size=(5, 100)), rng.normal(size=(33, 100))
sums = xnor.run(xnor.prepare_matmul(bits.pack(b), 100), bits.pack(a))
assert np.array_equal(sums, np.where(a >= 0, 1, -1) @ np.where(b >= 0, 1, -1).T)
print("compiled:", not numba.config.DISABLE_JIT, " sum of all sums:", sums.sum())
"""
for setting in ("0", "1"):
    environment = {**os.environ, "NUMBA_DISABLE_JIT": setting}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    print(done.stdout, end="")

# %% [markdown]
# ## Summary
#
# Four signs of one row and four of another have 256 combinations, and a byte shuffle looks up 32 or
# 64 of them at once. The roofline compares a program with the peaks of arithmetic and of memory,
# both measured, and says which of the two to work on. With weights in caches the product is bound
# by arithmetic; with one row and weights from memory it is bound by memory, and this is where one
# bit per weight pays most.

# %% [markdown]
# ## Exercises
#
# The exercises that check themselves are those of [04](04_xnor_and_popcount.ipynb). Think about:
#
# 1. A table for groups of 8 signs instead of 4 would need half as many look-ups. How large would it
#    be, and why does the shuffle not allow it?
# 2. How many rows does your machine need until it reaches the flat roof? What does that say about
#    answering one request at a time, and about training with batches?

# %% [markdown]
# ## Sources
#
# - S. Williams, A. Waterman, D. Patterson: *Roofline: An Insightful Visual Performance Model for
#   Multicore Architectures*, Communications of the ACM 52(4) (2009).
# - W. Muła, N. Kurz, D. Lemire: *Faster Population Counts Using AVX2 Instructions* (2018),
#   arXiv:1611.07612: shuffles as tables.
