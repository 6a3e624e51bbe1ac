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
# # XNOR and popcount: from a dot product to the limit of the machine
#
# **You will learn** how a dot product of signs becomes an exclusive or and a population count, how
# a kernel is brought from a Python loop to what the processor can do at most, one short step at a
# time, and how to tell what limits a program: its arithmetic, its memory, or neither.
#
# **You need** notebook 03. Some idea of what a register and a cache are helps. Reading takes about
# twenty minutes, running half a minute.
#
# Every step, or *rung*, computes the same matrix product. Each is compared with the one before by
# `==`, and each is measured. The times depend on the machine that runs the notebook; the text
# depends on their order of magnitude only.

# %% [markdown]
# ## The problem and the clock
#
# A binary layer with $K$ inputs and $N$ outputs, applied to $M$ rows, is a matrix product of signs:
#
# $$y_{ij} = \sum_{k=1}^{K} a_{ik}\, b_{jk}, \qquad a_{ik}, b_{jk} \in \{-1, +1\}.$$
#
# It takes $MNK$ products of two signs, each added to a sum. One product and one addition are a
# *MAC* (multiply-accumulate). Speeds below are in Gbit-MAC/s: $10^9$ products of signs a second.
#
# All rungs run on one core. The variables below tell the linear algebra library behind NumPy so;
# it reads them when NumPy is imported.

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

# %%
import re
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import numba
import numpy as np

from tinybnn import plots
from tinybnn.kernels import bits, xnor
from tinybnn.kernels.machine import shuffles
from tinybnn.kernels.machine.shuffles import add_three_look_ups, add_tile, has_shuffles
from tinybnn.kernels.signs.prepared import has_fast_look_ups
from tinybnn.kernels.simd import cpu_kind, load, load_splat, popcount, splat, store, zero_words

numba.set_num_threads(1)

# %% [markdown]
# $K$ is not a multiple of 64 on purpose.

# %%
M, N, K = 256, 256, 4000
rng = np.random.default_rng(0)
a_signs = rng.choice(np.float32([-1, 1]), (M, K))
b_signs = rng.choice(np.float32([-1, 1]), (N, K))
print(f"{M * N * K:,} products of signs")

# %% [markdown]
# Other programs can only slow a measurement down, so the shortest of several runs is the one that
# says most about the code. The first run is not counted: it may include compilation.
#
# `climb` measures a rung and keeps a note of it for the picture at the end. The last argument is
# the number of bytes that the rung's instructions load and store per product; it will be explained
# there.


# %%
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


ladder = []  # (name, products a byte, Gbit-MAC/s)


def climb(name, products, bytes_per_product, function, *arguments):
    rate = products / shortest(function, *arguments) / 1e9
    ladder.append((name, 1 / bytes_per_product, rate))
    before = f", {rate / ladder[-2][2]:,.1f} times the rung before" if len(ladder) > 1 else ""
    print(f"{name}: {rate:,.4g} Gbit-MAC/s{before}")


# %% [markdown]
# ## Rung 1: a Python loop
#
# The definition, word for word. It is so slow that we measure it on 8 rows and 8 columns only.


# %%
def loop(a, b):
    """The dot products of all rows of a with all rows of b; lists of lists of numbers."""
    result = []
    for row in a:
        sums = []
        for column in b:
            total = 0
            for x, y in zip(row, column, strict=True):
                total += x * y
            sums.append(total)
        result.append(sums)
    return result


few_a, few_b = a_signs[:8].tolist(), b_signs[:8].tolist()
climb("1 Python loop", 8 * 8 * K, 16, loop, few_a, few_b)

# %% [markdown]
# For each product the interpreter reads several instructions of its own, looks at the types of two
# objects, and makes new ones for the product and the sum. The multiplication itself is a small part
# of the work.

# %% [markdown]
# ## Rung 2: floats in NumPy
#
# `@` hands the problem to a routine of the linear algebra library, *sgemm* (single precision
# general matrix multiply). It has been tuned for decades and uses the vector instructions of the
# processor, which multiply and add 4, 8 or 16 floats at once.
#
# The sums are integers far below $2^{24}$, which float32 holds exactly, whatever the order of the
# additions. So both rungs agree to the last bit.

# %%
climb("2 floats (sgemm)", M * N * K, 8, np.matmul, a_signs, b_signs.T)
expected = a_signs @ b_signs.T

assert np.array_equal(expected[:8, :8], loop(few_a, few_b))

# %% [markdown]
# ## Rung 3: bits in words
#
# A float32 is 32 bits, and a sign needs one. Let bit 1 stand for +1 and bit 0 for -1. The four
# possible products are then
#
# | $a$ | $b$ | $ab$ | bits | XNOR | XOR |
# |---|---|---|---|---|---|
# | -1 | -1 | +1 | 0, 0 | 1 | 0 |
# | -1 | +1 | -1 | 0, 1 | 0 | 1 |
# | +1 | -1 | -1 | 1, 0 | 0 | 1 |
# | +1 | +1 | +1 | 1, 1 | 1 | 0 |
#
# The product is the XNOR ("not exclusive or") of the bits: 1 where they agree. XOR is its opposite:
# 1 where they differ. Among $K$ products let $d$ be the number of differences. Then $K - d$
# products are +1 and $d$ are -1, and
#
# $$a \cdot b = (K - d) - d = K - 2d, \qquad d = \operatorname{popcount}(a \oplus b).$$
#
# The *population count* of a word, popcount for short, is the number of its bits that are 1. We
# count differences rather than agreements because XOR is one instruction, and XNOR on most
# processors two.
#
# **Packing.** A row of $K$ signs becomes $\lceil K/64 \rceil$ words of 64 bits; element $64j + i$
# is bit $i$ of word $j$. The bits behind the last element are the *tail*. They are 0 in `a` and in
# `b`, so they never differ, and the formula stays true with the true $K$. (With XNOR they would
# agree, and be counted.)


# %%
def pack(signs):
    """(rows, K) of ±1 -> (rows, ceil(K / 64)) words."""
    rows, count = signs.shape
    words = -(-count // 64)
    ones = np.zeros((rows, 64 * words), np.uint64)  # the tail stays 0
    ones[:, :count] = signs > 0
    shifts = np.arange(64, dtype=np.uint64)
    return (ones.reshape(rows, words, 64) << shifts).sum(axis=2, dtype=np.uint64)


a, b = pack(a_signs), pack(b_signs)
W = a.shape[1]
print(f"{K} signs a row: {W} words, of the last one {K % 64} bits are used")
print(f"floats {a_signs.nbytes:,} bytes, words {a.nbytes:,}")
print(f"last word of row 0: {a[0, -1]:064b}")

# %% [markdown]
# The package has the same as `kernels.bits.pack`, compiled.

# %%
assert np.array_equal(a, bits.pack(a_signs)) and np.array_equal(b, bits.pack(b_signs))

# %% [markdown]
# NumPy can do XOR and popcount on whole arrays. This is the plainest way to write the kernel, and
# it is what the package calls the reference: every faster version is tested against it.


# %%
def with_words(a, b, count):
    differ = a[:, None, :] ^ b[None, :, :]  # (M, N, W)
    return count - 2 * np.bitwise_count(differ).sum(axis=2, dtype=np.int64)


assert np.array_equal(with_words(a, b, K), expected)
climb("3 words in NumPy", M * N * K, 34 / 64, with_words, a, b, K)

# %% [markdown]
# That is disappointing: 64 products in each word, and hardly faster than floats, or slower. The
# reason is what lies between the three operations. `differ` is an array of
# $256 \cdot 256 \cdot 63$ words, 33 MB, which is written to memory and read again for the sake of
# two instructions for each word; the counts follow the same way. The time goes into moving data.

# %% [markdown]
# ## Rung 4: a loop on words, compiled
#
# In a compiled loop a word is used while it is in a register and needs no place in memory. Numba
# compiles a Python function the first time it is called.
#
# Population count is not in Numba's vocabulary, so we need one made of ordinary arithmetic. The
# classical method adds neighbours in parallel: 32 sums of two bits each, then 16 sums of four bits,
# then 8 sums of a byte each; a multiplication adds up the bytes (Warren, *Hacker's Delight*,
# section 5-1).

# %%
PAIRS, FOURS = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
BYTES, EACH = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
ONE, TWO, FOUR, LAST = (np.uint64(n) for n in (1, 2, 4, 56))


@numba.njit
def count_ones(word):
    word = word - ((word >> ONE) & PAIRS)
    word = (word & FOURS) + ((word >> TWO) & FOURS)
    word = (word + (word >> FOUR)) & BYTES
    return (word * EACH) >> LAST


assert all(count_ones(word) == np.bitwise_count(word) for word in a[0])


# %%
@numba.njit
def on_words(a, b, count):
    out = np.empty((len(a), len(b)), np.int64)
    for i in range(len(a)):
        for j in range(len(b)):
            differ = np.uint64(0)
            for k in range(a.shape[1]):
                differ += count_ones(a[i, k] ^ b[j, k])
            out[i, j] = count - 2 * np.int64(differ)
    return out


assert np.array_equal(on_words(a, b, K), with_words(a, b, K))
climb("4 loop on words", M * N * K, 16 / 64, on_words, a, b, K)

# %% [markdown]
# A large step for so plain a loop, and the compiler has a part in it that the source does not show.
# Numba translates to LLVM, the compiler behind many languages. LLVM recognises the sequence in
# `count_ones` and replaces it by the processor's own instruction for population count, and where it
# can it works on several words at once (*vectorisation*). Let us look at what it made.
#
# `inspect_asm` gives the machine code as text. The function below prints the loops in it that count
# bits: what stands between a label and the jump back to it. Loops of more than 24 lines are left
# out if there is a shorter one.

# %%
COUNTS = r"\b(v?popcnt\w*|vpshufb|pshufb|cnt)\b"  # AVX-512 or SSE4.2; AVX2, SSSE3; ARM


def inner_loops(function, most=24):
    """Print the inner loops that count bits, in the order of the machine code."""
    text = function.inspect_asm(function.signatures[-1])
    pieces = re.split(r"^(\.?L\w+):.*$", text, flags=re.MULTILINE)[1:]  # label, code, label, ...
    loops = []
    for label, code in zip(pieces[::2], pieces[1::2], strict=True):
        lines = [line.strip().expandtabs(12) for line in code.splitlines()]
        jumps = [i for i, line in enumerate(lines) if line.endswith(label)]
        if jumps and re.search(COUNTS, "\n".join(lines[: jumps[0]])):
            instructions = [line for line in lines[: jumps[0] + 1] if line and line[0] != "."]
            loops.append([label + ":", *instructions])
    shown = [loop for loop in loops if len(loop) <= most] or sorted(loops, key=len)[:1]
    print("\n\n".join("\n".join(loop[:most]) for loop in shown))


inner_loops(on_words)

# %% [markdown]
# How to read it, whatever the processor:
#
# - With AVX-512 and its extension VPOPCNTDQ there is `vpopcntq`, which counts the bits of each word
#   in a vector register (`zmm`: 8 words, `ymm`: 4), beside `vpxorq` or `vpxor` for exclusive or
#   and `vpaddq` for addition. `popcntq` is its relative for a single word. There may be three
#   loops: one for 32 words at a time (four vectors of 8), one for what remains, 4 words at a time,
#   one for the last words. Then the 63 words of a row are $1 + 7 + 3$ steps.
# - With AVX2 there is no such instruction. LLVM uses `vpshufb` as a table of 16 entries: it looks
#   up the counts of both halves of each byte, and `vpsadbw` adds the bytes (Muła, Kurz and Lemire
#   2018).
# - With SSE4.2 it uses `popcnt`, one word at a time.
# - On ARM it is `cnt`, on bytes, followed by additions of neighbours (`uaddlp`, `uadalp`).

# %% [markdown]
# ## Rung 5: vectors by hand
#
# The compiler vectorised along $k$, since that was the inner loop. The counts of one row then lie
# in 8 lanes that have to be added up at the end, for every single output. Vectorising along the
# *columns* is better: each lane belongs to one output, and no lane ever has to meet another.
#
# To say so, `tinybnn.kernels.simd` has a small vocabulary. A *vector* is 8 words, or *lanes*, in
# one register:
#
# | word | meaning |
# |---|---|
# | `load(array, i)` | the 8 words from `array[i]` on |
# | `load_splat(array, i)` | the word `array[i]` in all 8 lanes |
# | `^`, `+`, `-` | lane by lane |
# | `popcount(v)` | the population count of each lane |
# | `zero_words()`, `splat(x)` | 8 lanes of 0, of x |
# | `store(array, i, v)` | writes the 8 lanes to `array[i]` and what follows |
#
# In compiled code each is an instruction or two. Outside it a vector is a NumPy array, and the same
# words can be tried out:

# %%
row, column = np.arange(4, dtype=np.uint64), np.arange(8, dtype=np.uint64)
x, w = load_splat(row, 3), load(column, 0)
print("x            ", x)
print("w            ", w)
print("x ^ w        ", x ^ w)
print("popcount     ", popcount(x ^ w))

# %% [markdown]
# For `load` the same word of 8 columns must be neighbours in memory. So the words of `b` are laid
# out once, in *panels* of 8 columns: word 0 of each of the 8, then word 1 of each, and so on. In a
# network `b` holds the weights, and this is done when the model is compiled.
#
# A cache hands out *lines* of 64 bytes, as long as 8 words. A vector that begins at an address
# divisible by 64 is one line; any other lies across two, and is two accesses. NumPy does not
# promise such addresses, so we copy the panels to one.


# %%
def aligned(words, shift=0):
    """A copy of a flat array of words that begins ``shift`` words after the start of a line."""
    room = np.empty(len(words) + 16, np.uint64)
    start = -room.ctypes.data % 64 // 8 + shift
    room[start : start + len(words)] = words
    return room[start : start + len(words)]


panels = aligned(b.reshape(N // 8, 8, W).transpose(0, 2, 1).reshape(-1))  # (N/8, W, 8), flat

assert np.array_equal(panels[:8], b[:8, 0])

# %% [markdown]
# The kernel takes flat arrays, and computes one row times 8 columns in its inner loop.
# `splat(count)` holds $K$, from which the differences are subtracted twice. Words are unsigned, but
# subtraction on 64 bits is the same for signed numbers; we only look at the result as int64.


# %%
@numba.njit
def one_by_eight(a, panels, length, count, out):
    rows, columns = len(a) // length, len(panels) // length
    total = splat(np.uint64(count))
    for j in range(0, columns, 8):
        for i in range(rows):
            differ = zero_words()
            for k in range(length):
                x = load_splat(a, i * length + k)
                w = load(panels, j * length + 8 * k)
                differ += popcount(x ^ w)
            store(out, i * columns + j, total - differ - differ)


flat, out = a.reshape(-1), np.zeros(M * N, np.uint64)
one_by_eight(flat, panels, W, K, out)

assert np.array_equal(out.view(np.int64).reshape(M, N), on_words(a, b, K))
climb("5 one row, 8 columns", M * N * K, 72 / 512, one_by_eight, flat, panels, W, K, out)

# %% [markdown]
# Does the address matter? The same kernel on panels that begin one word further on:

# %%
for shift in (0, 1):
    seconds = shortest(one_by_eight, flat, aligned(panels, shift), W, K, out)
    print(f"shifted by {8 * shift} bytes: {M * N * K / seconds / 1e9:,.0f} Gbit-MAC/s")

# %% [markdown]
# A kernel in this vocabulary is still Python. `py_func` is the function before compilation; it runs
# on NumPy arrays of lanes, and a debugger can stop in each line.

# %%
slow = np.zeros(2 * 8, np.uint64)
one_by_eight.py_func(flat[: 2 * W], panels[: 8 * W], W, K, slow)

assert np.array_equal(slow.reshape(2, 8), out.reshape(M, N)[:2, :8])

# %% [markdown]
# ## Rung 6: four rows at a time
#
# Look at one step of the inner loop: two loads, XOR, popcount, addition. Two things can hold it up.
#
# **Loads.** Two loads serve three instructions that compute. A processor starts two or three loads
# in a cycle, whether they bring 8 bytes or 64. And `w` is loaded again for the next row, although
# nothing in it has changed.
#
# **A chain of dependencies.** Each addition needs the `differ` of the step before. A processor can
# start several instructions in each cycle, but one that needs a result has to wait until it is
# there. The time that takes is the *latency* of the instruction that makes it. However many units
# there are, the chain advances by one addition per latency.
#
# Both have the same remedy, *register blocking*: compute a block of several outputs in the same
# loop. Four rows share each load of `w`, and their four counts are four chains that do not wait for
# one another.


# %%
@numba.njit
def four_by_eight(a, panels, length, count, out):
    rows, columns = len(a) // length, len(panels) // length
    total = splat(np.uint64(count))
    for j in range(0, columns, 8):
        for i in range(0, rows, 4):
            i0, i1, i2, i3 = i * length, (i + 1) * length, (i + 2) * length, (i + 3) * length
            d0, d1, d2, d3 = zero_words(), zero_words(), zero_words(), zero_words()
            for k in range(length):
                w = load(panels, j * length + 8 * k)
                d0 += popcount(load_splat(a, i0 + k) ^ w)
                d1 += popcount(load_splat(a, i1 + k) ^ w)
                d2 += popcount(load_splat(a, i2 + k) ^ w)
                d3 += popcount(load_splat(a, i3 + k) ^ w)
            store(out, i * columns + j, total - d0 - d0)
            store(out, (i + 1) * columns + j, total - d1 - d1)
            store(out, (i + 2) * columns + j, total - d2 - d2)
            store(out, (i + 3) * columns + j, total - d3 - d3)


four = np.zeros(M * N, np.uint64)
four_by_eight(flat, panels, W, K, four)

assert np.array_equal(four, out)
climb("6 four rows, 8 columns", M * N * K, 96 / 2048, four_by_eight, flat, panels, W, K, four)

# %% [markdown]
# The machine code of the inner loop is now close to the source: with AVX-512, for each row a
# `vpxorq` that loads the word of `a`, puts it into all lanes (`{1to8}`) and combines it with `w`;
# a `vpopcntq`; a `vpaddq`. The four sums stay in four registers.

# %%
inner_loops(four_by_eight)

# %% [markdown]
# ## Rung 7: the package's kernel, 4 × 32
#
# The package goes one step further in the same direction: 4 rows and 4 vectors of columns, so 16
# counts. One step of its loop loads 4 vectors of weights and 4 words of `a`, and each of them is
# used 4 times:
#
# | block | loads | XOR, popcount, add | loads for each of these | chains |
# |---|---|---|---|---|
# | 1 × 8 | 2 | 3 | 0.67 | 1 |
# | 4 × 8 | 5 | 12 | 0.42 | 4 |
# | 4 × 32 | 8 | 48 | 0.17 | 16 |
#
# The limit is the number of registers. 16 counts, 4 vectors of weights and one of `a` make 21, of
# the 32 that AVX-512 has. If a block does not fit, the compiler has to *spill* counts to memory and
# load them back, which is what blocking was to avoid. AVX2 has 16 registers, each half as long:
# there the same kernel spills, and the package takes another one.
#
# The kernel is in `tinybnn/kernels/signs/counting.py` and reads like the one above with more lines;
# besides, it handles rows and columns that do not fill a block, and writes int32. It is used in two
# steps. `prepare_matmul` lays out the weights, once; `run` computes.

# %%
prepared = xnor.prepare_matmul(b, K, method="counting")
sums = xnor.run(prepared, a)

assert np.array_equal(sums, four.view(np.int64).reshape(M, N))
assert np.array_equal(sums, expected)
climb("7 four rows, 32 columns", M * N * K, 288 / 8192, xnor.run, prepared, a)

# %% [markdown]
# ## Rung 8: tables instead of counting
#
# Where no instruction counts the bits of a vector, on all processors with AVX2 and no AVX-512, a
# population count is about ten instructions, and the rungs above are close to one another: whatever
# is saved on loads drowns in them. What is left is not to count at all.
#
# Cut each row into *nibbles*, groups of 4 bits. Two nibbles have $16 \cdot 16$ possible pairs, and
# the number of their differences can be written down once for each:


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
# In NumPy that is slow: an index is worth far more work than four signs. But processors have an
# instruction for it, the *byte shuffle* (`vpshufb`). It takes a register as a table of 16 bytes,
# and looks up one nibble in each byte of another register: 32 look-ups in one instruction with
# AVX2, 64 with AVX-512. A row of `differences` is such a table, the nibbles of 32 columns of `b`
# are such a register.
#
# Entries are at most 4 and need three bits, so a byte has room for two: a table can serve two rows
# of `a` at once, $i$ in the lower half of its bytes and $i + 1$ in the upper one. There are 256
# tables, for all pairs of nibbles, 4 KB in all; which one belongs to a pair of rows at each place
# is written down before the product, and used for all columns.

# %%
pair = np.arange(256)
tables = (differences[pair & 15] | differences[pair >> 4] << 4).reshape(-1)  # 16 bytes each
places = 16 * (four_a[::2] | four_a[1::2].astype(np.uint16) << 4)  # (M/2, 16 W): where each begins
places = places.reshape(-1).view(np.uint64)  # four places a word

# %% [markdown]
# The work for a nibble of two rows and 32 columns is then two instructions, a shuffle and an
# addition. Two details remain, and two words of the vocabulary that see to them:
#
# - A half of a byte holds at most 15, three look-ups. `add_three_look_ups` adds up three, and then
#   adds the result to a vector of totals, and once more, shifted by a half byte, to another one.
#   These two are a *tile*. Its bytes overflow, but together both know the counts of both rows.
# - They do so up to 255, for 63 look-ups. After as many, `add_tile` writes 16-bit sums to memory:
#   those of row $i$, then those of row $i + 1$. It takes the even bytes of a vector before the odd
#   ones, since that needs no shuffle. So that columns come out in order, a panel holds them in
#   another one: 0, 16, 1, 17 and so on.


# %%
AT_ONCE = shuffles.BYTES  # look-ups of an instruction
zero_tile = shuffles.zero_tile_of(AT_ONCE)  # for as many columns


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
# Which rung is higher, 7 or 8, is the processor's answer, not the algorithm's. With AVX2 alone,
# where rungs 5 to 7 are hardly different, the ladder goes on here. With VPOPCNTDQ it is a step
# down: an instruction that counts 512 bits beats one that looks up 64 nibbles.
#
# The package has both, and takes what suits the processor for which Numba compiles; the integers
# are the same. Its kernel for look-ups (`tinybnn/kernels/signs/look_ups.py`) takes four vectors of
# columns at a time, so that each table is loaded for four shuffles.

# %%
print(f"this processor has {cpu_kind()}; the package takes ", end="")
print("look-ups" if has_fast_look_ups() else "counting")
chosen = xnor.prepare_matmul(b, K)

assert np.array_equal(xnor.run(chosen, a), expected)
package = M * N * K / shortest(xnor.run, chosen, a) / 1e9
print(f"{package:,.0f} Gbit-MAC/s")
assert package > 0.5 * max(rate for _, _, rate in ladder)

# %% [markdown]
# To step through it, turn compilation off for the whole process: start your script with
# `NUMBA_DISABLE_JIT=1 python -m pdb script.py` and set a breakpoint in the kernel. All kernels of
# the package run that way, and the result is the same:

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
# ## What is the limit?
#
# **Arithmetic.** Take the kernel and leave out the loads: the same XORs, popcounts and additions on
# independent counts, with all values in registers. No kernel made of these instructions can be
# faster. `xnor.register_peak` measures it with 16 counts, as the package's kernel has. Where
# registers are fewer and shorter, 16 counts do not fit and are spilled even here, so we try 4
# counts as well, and take the better result. Tables have a peak of their own: look-ups in the same
# few tables again and again.


# %%
@numba.njit
def four_counts(steps, seed):
    d0, d1, d2, d3 = zero_words(), zero_words(), zero_words(), zero_words()
    w = splat(seed)
    for _ in range(steps):
        # Each count goes into its next value, so that nothing can be computed before the loop.
        d0 += popcount(d0 ^ w)
        d1 += popcount(d1 ^ w)
        d2 += popcount(d2 ^ w)
        d3 += popcount(d3 ^ w)
    total = np.zeros(8, np.uint64)
    store(total, 0, d0 + d1 + d2 + d3)
    return total


steps = 100_000
with_4 = steps * 4 * 512 / shortest(four_counts, steps, np.uint64(steps))
with_16 = max(xnor.register_peak(method="counting") for _ in range(5))
peaks = {"counting": max(with_4, with_16) / 1e9}
if has_shuffles():
    peaks["look-ups"] = max(xnor.register_peak(method="look_ups") for _ in range(5)) / 1e9
for name, found in peaks.items():
    print(f"register peak of {name}: {found:,.0f} Gbit-MAC/s")
for name, _, rate in ladder:
    own = peaks["look-ups" if name.startswith("8") else "counting"]
    print(f"{name:<24} {rate / own:9.3%}")
peak = max(peaks.values())

# %% [markdown]
# Both sides of this division are measurements, on a machine that may do other things at the same
# time, so slightly more than 100% is possible. And where rung 4 uses another instruction than the
# vectors do (`popcnt`), this peak is not its own.
#
# **Data.** Operands have to arrive, from a cache or from memory. How many bytes a second can the
# core load? This kernel does nothing but load and add up.


# %%
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
    words, times = aligned(np.ones(size // 8, np.uint64)), max(1, 2**24 // size)
    assert read(words, times).sum() == len(words) * times
    return words.nbytes * times / shortest(read, words, times) / 1e9


sizes = {"first-level cache": 2**14, "memory": 2**27}
speed = {name: bandwidth(size) for name, size in sizes.items()}
for name, found in speed.items():
    print(f"{name:<20} {sizes[name] / 2**10:9,.0f} KB {found:6.0f} GB/s")

# %% [markdown]
# ## The roofline
#
# Let $I$ be the number of products for each byte that is moved, the *intensity* of a program. With
# a bandwidth of $B$ bytes a second no more than $B \cdot I$ products a second can be fed, and with
# a peak of $P$ no more than $P$ can be computed:
#
# $$\text{rate} \le \min(P,\; B \cdot I).$$
#
# On logarithmic axes this is a slope that ends in a flat roof, hence *roofline* (Williams, Waterman
# and Patterson 2009). A program under the slope is *bound by memory*: only a higher intensity helps
# it. One under the flat part is *bound by arithmetic*. The corner is at $I = P/B$.
#
# Which bytes to count depends on which road is narrow. For the ladder we count what the
# instructions load and store. These are the numbers that were given to `climb`:
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
# Floats (rung 2) appear as a line: how sgemm is blocked is up to the library.
#
# The right half of the picture is another case, the one for which the roofline was made. Nothing in
# our product comes from memory but once: `a` and `b` are 130 KB each and stay in a cache. So take a
# layer with 64 MB of packed weights, and let 1, 4, 16, 64 rows pass through it. The weights come
# from memory, once in each run, and $m$ rows share them: 64 products a word and row, $8m$ products
# a byte, a little less with the bytes of the rows and of the sums.

# %%
inputs, outputs = 8192, 65536
weights = rng.integers(0, 2**64, (outputs, inputs // 64), np.uint64)
large = xnor.prepare_matmul(weights, inputs)

batches = []  # (rows, products a byte, Gbit-MAC/s)
for rows in (1, 4, 16, 64):
    x = rng.integers(0, 2**64, (rows, inputs // 64), np.uint64)
    y = np.empty((rows, outputs), np.int32)
    products = rows * outputs * inputs
    rate = products / shortest(xnor.run, large, x, y, seconds=0.5) / 1e9
    batches.append((rows, products / (weights.nbytes + x.nbytes + y.nbytes), rate))
    print(f"rows {rows:2}: {rate:7,.0f} Gbit-MAC/s, {rate / peak:.0%} of the register peak")

assert np.array_equal(y[0, :100], with_words(x[:1], weights[:100], inputs)[0])

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
for axes, low, high in ((left, 1 / 32, 256), (right, 2, 2048)):
    intensity = np.geomspace(low, high, 200)
    for name, style in (("first-level cache", "-"), ("memory", "--")):
        roof = np.minimum(peak, speed[name] * intensity)
        axes.plot(intensity, roof, style, color="0.35", label=f"roof: {name}")
    axes.axhline(ladder[1][2], color=plots.MINUS, linestyle=":", label="2 floats (sgemm)")
    axes.set(xscale="log", yscale="log", ylim=(ladder[0][2] / 3, peak * 3))
    axes.grid(color="0.92")

for name, x, rate in ladder:
    if not name.startswith("2"):
        left.plot(x, rate, "o", color=plots.PLUS, markeredgecolor="0.3")
        left.annotate(name[0], (x, rate), (6, -11), textcoords="offset points")
left.set(xlabel="products a byte, between core and cache", ylabel="Gbit-MAC/s", title="The ladder")
left.legend(loc="lower right", fontsize=8)

for rows, x, rate in batches:
    right.plot(x, rate, "s", color=plots.PLUS, markeredgecolor="0.3")
    right.annotate(f"{rows} row{'s' * (rows > 1)}", (x, rate), (6, -11), textcoords="offset points")
right.set(xlabel="products a byte, between memory and core", title="Rung 7, weights from memory")
plt.show()

# %% [markdown]
# What bounds each rung?
#
# 1. **Python loop**: far below every roof. Neither arithmetic nor data limits it, but the
#    interpreter's own instructions. The roofline shows that something else is wrong; it does not
#    say what.
# 2. **Floats**: bound by arithmetic too, but by that of another unit. A vector of 512 bits holds 16
#    floats, or 512 signs. A float MAC is one instruction and a sign MAC three (XOR, popcount, add),
#    which takes back a part of the factor of 32.
# 3. **Words in NumPy**: 33 MB of differences are written and read, so the dashed roof is the one
#    that counts, and the rung is not far from it: bound by memory, or by the largest cache where
#    that is large enough.
# 4. **Loop on words**: the data are in caches, and the roof is higher than this. It pays for the
#    ends of rows and for adding up the lanes, once for every output.
# 5. **One row**: below both roofs again. A load of 8 bytes takes as much of the processor's time as
#    one of 64, so counting bytes is too kind here; and there is the chain of additions. Roofs are
#    what a program cannot exceed, not what it will reach.
# 6. and 7. **Blocks**: bound by arithmetic. The points touch the roof of their instructions or come
#    near it, and there is nothing left to gain but by other ones. How much of the way 4 × 8 goes
#    already differs between processors; 4 × 32 leaves more room for those that load more slowly.
# 8. **Tables**: other instructions. Where nothing counts the bits of a vector, rungs 4 to 7 lie
#    close to one another far below the flat roof, since counting takes some ten instructions there,
#    and loads, chains and ends of rows hardly matter beside it. Tables lift the roof. Where the
#    bits of a vector are counted by one instruction, they are not needed.
#
# On the right: with one row the kernel is bound by memory, and runs about as fast as weights
# arrive. Further rows use weights that are there anyway and move the point along the slope, towards
# the flat roof. Around the corner the points lie below both: there waiting and computing
# take about as long as each other, and do not overlap altogether. Left of the corner, one image at
# a time, no better kernel helps, only fewer bytes. That is the second reason for bits: the same
# weights are 32 times fewer bytes than in float32.

# %%
corner = peak / speed["memory"]
print(f"corner at {corner:.0f} products a byte: about {corner / 8:.0f} rows")

# %% [markdown]
# ## Exercises
#
# 1. Write `with_words` with XNOR: $2\operatorname{popcount}(\overline{a \oplus b}) - K$. For $K =
#    4000$ all results are wrong by the same number; predict it, then check. *Hint:* what does XNOR
#    give in the tail, and how many tail bits are there? In NumPy, `~` inverts.
# 2. Rung 6 differs from rung 5 in two things, fewer loads and more chains. Which one makes it
#    faster on your machine? Write rung 5 with two counts, one for even $k$ and one for odd $k$: two
#    chains, and as many loads as before. *Hint:* the loop takes steps of 2 and ends before the last
#    word, since $W = 63$ is odd; add the two counts behind it.
# 3. A block of $R$ rows and $C$ vectors of columns takes $RC$ products of vectors for $8R + 64C$
#    bytes in $R + C$ loads. It needs $RC + C + 1$ registers. Among the shapes that fit into 32
#    registers, which has the fewest bytes a product, and which the fewest loads? And with the 16
#    registers of AVX2, where a vector of 8 words takes two? *Hint:* two loops and a list of tuples,
#    sorted. The answers differ; `counting.py` had to choose.

# %% [markdown]
# ## Sources
#
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016), arXiv:1602.02830: products of signs by XNOR and popcount, and a kernel for them.
# - M. Rastegari, V. Ordonez, J. Redmon, A. Farhadi: *XNOR-Net* (2016), arXiv:1603.05279: the same
#   for convolutions.
# - H. S. Warren: *Hacker's Delight*, 2nd edition (2012), chapter 5: counting bits.
# - W. Muła, N. Kurz, D. Lemire: *Faster Population Counts Using AVX2 Instructions* (2018),
#   arXiv:1611.07612.
# - S. Williams, A. Waterman, D. Patterson: *Roofline: An Insightful Visual Performance Model for
#   Multicore Architectures*, Communications of the ACM 52(4) (2009).
# - K. Goto, R. van de Geijn: *Anatomy of High-Performance Matrix Multiplication*, ACM Transactions
#   on Mathematical Software 34(3) (2008): panels and register blocks.
