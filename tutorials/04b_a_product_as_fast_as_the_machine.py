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
# # A product as fast as the machine
#
# **You will learn** how to bring the compiled loop of 04 close to the processor's limit in three
# short steps: vectors, blocks of registers, larger blocks; how to read its machine code; and how to
# measure the limit that the processor's arithmetic sets.
#
# **You need** [04](04_xnor_and_popcount.ipynb). Some idea of what a register and a cache are helps.
# None of this is needed for the chapters that follow.
#
# **Time** about 15 minutes of reading; the cells run for about 20 seconds.

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # one core

# %%
import re
import time

import matplotlib.pyplot as plt
import numba
import numpy as np

from tinybnn import plots
from tinybnn.kernels import bits, xnor
from tinybnn.kernels.machine.selection import count_ones
from tinybnn.kernels.simd import cpu_kind, load, load_splat, popcount, splat, store, zero_words

numba.set_num_threads(1)

# %% [markdown]
# ## The question
#
# In 04 the product of 256 × 256 rows of 4,000 signs was computed by a Python loop, by floats, by
# words in NumPy, and by a compiled loop, the fastest of them. **Is that fast?** How far is it from
# what the processor can do at most, and what is in the way?
#
# Each version is a *rung* of a ladder. `climb` measures it, in Gbit-MAC/s: $10^9$ products of signs
# a second.

# %%
M, N, K = 256, 256, 4000
rng = np.random.default_rng(0)
a_signs, b_signs = rng.choice(np.float32([-1, 1]), (2, M, K))
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


ladder = {}  # Gbit-MAC/s


def climb(name, products, function, *arguments):
    before = list(ladder.values())
    ladder[name] = products / shortest(function, *arguments) / 1e9
    times = f", {ladder[name] / before[-1]:,.1f} times the rung before" if before else ""
    print(f"{name}: {ladder[name]:,.4g} Gbit-MAC/s{times}")


def loop(a, b):
    return [[sum(x * y for x, y in zip(row, w, strict=True)) for w in b] for row in a]


few_a, few_b = a_signs[:8].tolist(), b_signs[:8].tolist()
climb("1 Python loop", 8 * 8 * K, loop, few_a, few_b)
climb("2 floats (sgemm)", M * N * K, np.matmul, a_signs, b_signs.T)
climb("3 words in NumPy", M * N * K, xnor.xnor_matmul_reference, a, b, K)

assert np.array_equal(loop(few_a, few_b), expected[:8, :8])
assert np.array_equal(xnor.xnor_matmul_reference(a, b, K), expected)

# %% [markdown]
# ## The naive version
#
# Rung 4 is the loop of 04 that finds the row with the fewest differences.


# %%
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


assert np.array_equal(nearest(a, b), expected.argmax(axis=1))
climb("4 loop on words", M * N * K, nearest, a, b)

# %% [markdown]
# The compiler contributes to this speed in a way that the source does not show. Numba hands the
# function to LLVM, the compiler behind many languages, and where possible LLVM works on several
# words at once (*vectorisation*). `inspect_asm` gives the machine code as text. The function below
# prints its loops that count bits, that is, the code between a label and the jump back to it.

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


inner_loops(nearest)

# %% [markdown]
# How to read it, whatever the processor:
#
# - With AVX-512 and its extension VPOPCNTDQ you see `vpopcntq`, which counts the bits of each word
#   in a vector register (`zmm`: 8 words, `ymm`: 4), together with `vpxorq` or `vpxor` for exclusive
#   or and `vpaddq` for addition. `popcntq` does the same for a single word.
# - AVX2 has no such instruction. LLVM uses `vpshufb` as a table of 16 entries: it looks up the
#   counts of both halves of each byte, and `vpsadbw` adds the bytes (Muła, Kurz and Lemire 2018).
# - With SSE4.2 it uses `popcnt`, one word at a time.
# - On ARM it is `cnt`, on bytes, followed by additions of neighbours (`uaddlp`, `uadalp`): five
#   instructions for each vector of 128 signs.

# %% [markdown]
# ## Vectors by hand
#
# The compiler vectorised along $k$, since that was the inner loop. The counts of one row are then
# spread over 8 lanes, which have to be added up at the end for every single output. Vectorising
# along the *columns* is better: each lane belongs to one output, and lanes are never combined.
#
# To express this, `tinybnn.kernels.simd` has a small vocabulary. A *vector* is 8 words, or *lanes*,
# in one register:
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
# In compiled code each of these is an instruction or two. In plain Python a vector is a NumPy
# array, so you can try out the same vocabulary:

# %%
row, column = np.arange(4, dtype=np.uint64), np.arange(8, dtype=np.uint64)
x, w = load_splat(row, 3), load(column, 0)
print("x            ", x)
print("w            ", w)
print("x ^ w        ", x ^ w)
print("popcount     ", popcount(x ^ w))

# %% [markdown]
# For `load`, the 8 words of the same index in 8 columns must be neighbours in memory. So the words
# of `b` are laid out once in *panels* of 8 columns: word 0 of each of the 8, then word 1 of each,
# and so on. In a network `b` holds the weights, and the layout happens when the model is compiled.
#
# A cache works in *lines* of 64 bytes, the size of 8 words. A vector that begins at an address
# divisible by 64 is one line; any other spans two lines and takes two accesses. NumPy does not
# guarantee such addresses, so we copy the panels to one.


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
# The kernel takes flat arrays and computes one row times 8 columns in its inner loop.
# `splat(count)` holds $K$, from which the differences are subtracted twice. Words are unsigned, but
# 64-bit subtraction is the same for signed numbers; we only view the result as int64.


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

assert np.array_equal(out.view(np.int64).reshape(M, N), expected)
climb("5 one row, 8 columns", M * N * K, one_by_eight, flat, panels, W, K, out)

# %% [markdown]
# A kernel in this vocabulary is still Python. `py_func` is the function before compilation; it runs
# on NumPy arrays of lanes, and a debugger can stop at each line.

# %%
slow = np.zeros(2 * 8, np.uint64)
one_by_eight.py_func(flat[: 2 * W], panels[: 8 * W], W, K, slow)

assert np.array_equal(slow.reshape(2, 8), out.reshape(M, N)[:2, :8])

# %% [markdown]
# ## The better version: four rows at a time
#
# Look at one step of the inner loop: two loads, XOR, popcount, addition. Two things can hold it up.
#
# **Loads.** Two loads serve three instructions that compute. A processor starts two or three loads
# per cycle, whether of 8 bytes or 64. And `w` is loaded again for the next row, although it has not
# changed.
#
# **A chain of dependencies.** Each addition needs the `differ` of the step before. A processor can
# start several instructions in each cycle, but one that needs a result has to wait until it is
# there. This wait is the *latency* of the instruction that computes the result. However many
# arithmetic units there are, the chain advances by one addition per latency.
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
climb("6 four rows, 8 columns", M * N * K, four_by_eight, flat, panels, W, K, four)

# %% [markdown]
# The machine code of the inner loop is now close to the source: with AVX-512, for each row a
# `vpxorq` that loads the word of `a`, puts it into all lanes (`{1to8}`) and combines it with `w`; a
# `vpopcntq`; a `vpaddq`. The four sums stay in four registers.

# %%
inner_loops(four_by_eight)

# %% [markdown]
# ## The package's kernel: 4 × 32
#
# The package goes one step further in the same direction, with 4 rows and 4 vectors of columns,
# hence 16 counts. One step of its loop loads 4 vectors of weights and 4 words of `a`, and each of
# them is used 4 times:
#
# | block | loads | XOR, popcount, add | loads for each of these | chains |
# |---|---|---|---|---|
# | 1 × 8 | 2 | 3 | 0.67 | 1 |
# | 4 × 8 | 5 | 12 | 0.42 | 4 |
# | 4 × 32 | 8 | 48 | 0.17 | 16 |
#
# The limit is the number of registers. 16 counts, 4 vectors of weights and one of `a` make 21 of
# the 32 registers of AVX-512. If a block does not fit, the compiler has to *spill* counts to memory
# and load them back, which is what blocking was meant to avoid. AVX2 has 16 registers, each half as
# long: there the same kernel spills, and the package uses another one.
#
# ARM64 has 32 registers, each a quarter as long: the counts of 4 × 32 words would take 64. There
# the package counts bytes instead of words, in three instructions for 128 signs: XOR, `cnt`, and an
# addition of bytes. Every 31 words, before a byte overflows, the bytes are added up. Its blocks are
# 4 × 8: 16 registers of counts, 4 of weights and 4 of `a`
# ([`kernels/signs/counting_bytes.py`](../tinybnn/kernels/signs/counting_bytes.py)).
#
# The kernel is in `tinybnn/kernels/signs/counting.py` and reads like the one above with more lines;
# it also handles rows and columns that do not fill a block, and writes int32. It is used in two
# steps: `prepare_matmul` lays out the weights once, and `run` computes.

# %%
prepared = xnor.prepare_matmul(b, K, method="counting")
sums = xnor.run(prepared, a)

assert np.array_equal(sums, four.view(np.int64).reshape(M, N))
assert np.array_equal(sums, expected)
climb("7 four rows, 32 columns", M * N * K, xnor.run, prepared, a)

# %% [markdown]
# ## Measured
#
# What is the limit? Take the kernel and leave out the loads: the same XORs, popcounts and additions
# on independent counts, all values in registers. No kernel made of these instructions can be
# faster. `xnor.register_peak` measures it with 16 counts, as in the package's kernel. Where
# registers are fewer and shorter, 16 counts spill even here, so we also try 4 counts and take the
# better result.


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
peak = max(with_4, with_16) / 1e9
print(f"register peak of {cpu_kind()}: {peak:,.0f} Gbit-MAC/s")

for name, rate in ladder.items():
    print(f"{name:<24} {rate / peak:9.3%} of the peak")

assert peak > 0.5 * max(ladder.values())
assert ladder["7 four rows, 32 columns"] > 100 * ladder["1 Python loop"]

# %%
figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
colours = [plots.MINUS if name[0] in "12" else plots.PLUS for name in ladder]
axes.barh(list(ladder), list(ladder.values()), color=colours)
axes.axvline(peak, color="0.35", linestyle="--")
axes.annotate("register peak ", (peak, 0), ha="right", va="center", color="0.35")
axes.set(xscale="log", xlabel="Gbit-MAC/s, one core (orange: words)")
axes.invert_yaxis()
axes.grid(axis="x", color="0.92")
axes.set_axisbelow(True)
plt.show()

# %% [markdown]
# What limits each rung?
#
# 1. **Python loop**: the interpreter's own instructions.
# 2. **Floats**: floating-point arithmetic. A vector of 512 bits holds 16 floats, or 512 signs. A
#    float MAC is one instruction and a sign MAC three (XOR, popcount, add), which takes back part
#    of the factor of 32.
# 3. **Words in NumPy**: memory, through which all differences pass.
# 4. **Loop on words**: the ends of rows, and adding up the lanes, once for every output.
# 5. **One row**: loads, and the chain of additions.
# 6. and 7. **Blocks**: arithmetic. They come near the peak; only other instructions could gain
#    more. (Both are measured on a machine that may do other things at the same time, so slightly
#    more than 100% is possible.)
#
# Where no instruction counts the bits of a vector, rungs 4 to 7 are close to one another: counting
# takes about ten instructions there, and loads, chains and ends of rows hardly matter in
# comparison. What helps such a processor, and what happens when the operands come from memory, is
# the subject of [04c](04c_tables_and_the_roofline.ipynb).

# %% [markdown]
# ## In the package
#
# The vocabulary is in [`kernels/machine/simd.py`](../tinybnn/kernels/machine/simd.py), the kernel
# in [`kernels/signs/counting.py`](../tinybnn/kernels/signs/counting.py). It also handles rows and
# columns that do not fill a block:

# %%
odd = xnor.prepare_matmul(b[:37], K, method="counting")

assert np.array_equal(xnor.run(odd, a[:3]), expected[:3, :37])

# %% [markdown]
# ## Summary
#
# Vectors along the columns give each output its own lane. A block of several outputs shares its
# loads and has independent chains of additions, as many as fit into the registers. The limit of
# this can be measured: it is the peak of the same instructions without loads, and the last rung
# comes near it. Only other instructions would be faster.

# %% [markdown]
# ## Exercises
#
# The exercises that check themselves are those of [04](04_xnor_and_popcount.ipynb). Think about:
#
# 1. Rung 6 differs from rung 5 in two things, fewer loads and more chains. Which one makes it
#    faster on your machine? Write rung 5 with two counts, one for even $k$ and one for odd $k$: two
#    chains, and as many loads as before.
# 2. A block of $R$ rows and $C$ vectors of columns takes $RC$ products of vectors for $8R + 64C$
#    bytes in $R + C$ loads, and needs $RC + C + 1$ registers. Among the shapes that fit into 32
#    registers, which has the fewest bytes per product, and which the fewest loads? And with the 16
#    registers of AVX2, where a vector of 8 words takes two?

# %% [markdown]
# ## Sources
#
# - W. Muła, N. Kurz, D. Lemire: *Faster Population Counts Using AVX2 Instructions* (2018),
#   arXiv:1611.07612.
# - K. Goto, R. van de Geijn: *Anatomy of High-Performance Matrix Multiplication*, ACM Transactions
#   on Mathematical Software 34(3) (2008): panels and register blocks.
