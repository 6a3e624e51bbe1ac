"""Products of floats with signs by lookup tables.

A sum of K gradients with signs, ±g0 ±g1 ±g2 ..., is made of sums of four, and four gradients have
only 16 sums ±g0 ±g1 ±g2 ±g3. Make a table of them once; then for each column c four signs, read as
a number from 0 to 15, say which of the sums it needs::

    number   signs      sum
    0        - - - -    -g0 -g1 -g2 -g3
    1        + - - -    +g0 -g1 -g2 -g3
    2        - + - -    -g0 +g1 -g2 -g3
    ...
    15       + + + +    +g0 +g1 +g2 +g3

One look-up and one addition take the place of four multiplications and four additions. (Tables of
all sums of a few rows are the Method of the Four Russians, Arlazarov, Dinic, Kronrod and Faradzhev
1970.) It is fast since 16 floats fill one AVX-512 register, and one instruction picks from it for
16 columns at once. The signs have to lie along k for this: 32 signs of one column are the bits of
an integer, which is shifted by four from one table to the next. They arrive packed along c, and
`turn` brings them there.

Half of a table tells all: when every sign is turned round, the sum changes its sign and nothing
else. So 8 entries and the fourth sign suffice, and AVX2, which can pick from 8 floats at a time,
finds the same numbers. Other CPUs cannot run `product`.

For speed alone: the products are those of `convolution` with unpacked signs. See `sign_gradients`
for what it gains.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tinybnn.kernels.machine.memory import on_lines
from tinybnn.kernels.machine.selection import look_up, next_four, or_where, pick
from tinybnn.kernels.machine.simd import (
    FLOATS,
    cpu_features,
    inlined,
    kernel,
    load,
    load_like,
    load_splat,
    store,
    subkernel,
    zero_floats,
    zeros,
)
from tinybnn.kernels.machine.tiles import (
    add_stored,
    compile_rows,
    four,
    load_lanes,
    moved,
    store_tile,
)

LANES = 4 * FLOATS  # columns of a panel
STEP = 32  # gradients whose signs are the bits of one integer
STEP_FLOATS = STEP // 4 * FLOATS  # size of their tables

# Lane i of pattern j: the sign of gradient j in sum number i.
PATTERNS = np.where(np.arange(16) >> np.arange(4)[:, None] & 1, 1, -1).astype(np.float32)
PATTERNS = on_lines(PATTERNS.ravel())


def product_reference(grad, signs):
    """``grad @ signs`` by lookup tables, in plain NumPy.

    Its sums run in the order of `product`.

    Parameters
    ----------
    grad : (M, K) float32
    signs : (K, C)
        +1 or -1.

    Returns
    -------
    (M, C) float32
    """
    (rows, length), columns = grad.shape, signs.shape[1]
    more = -length % 4  # zeros fill up the last four gradients: any signs will do
    grad, signs = np.pad(grad, ((0, 0), (0, more))), np.pad(signs, ((0, more), (0, 0)))
    fours = (length + more) // 4
    terms = grad.reshape(rows, fours, 4, 1) * PATTERNS.reshape(4, 16)  # (M, K/4, 4, 16)
    tables = (terms[:, :, 0] + terms[:, :, 1]) + (terms[:, :, 2] + terms[:, :, 3])
    bits = (signs > 0).reshape(fours, 4, columns)
    numbers = (bits << np.arange(4)[:, None]).sum(1)  # (K/4, C)
    out = np.zeros((rows, columns), np.float32)
    for step in range(fours):
        out += tables[:, step, numbers[step]]
    return out


# ------------------------------------------------------------------------------------------ tables


@inlined
def make_tables(grad, at, count, step, patterns, tables, to, size):
    """The tables of grad[at], grad[at + step], ..., filled up with zeros.

    tables[to : to + size] holds tables of 16 floats, each of four gradients.
    """
    whole = count - count % 4
    for i in range(0, whole, 4):
        g0, g1 = load_splat(grad, at + i * step), load_splat(grad, at + (i + 1) * step)
        g2, g3 = load_splat(grad, at + (i + 2) * step), load_splat(grad, at + (i + 3) * step)
        low = g0 * load(patterns, 0) + g1 * load(patterns, 16)
        high = g2 * load(patterns, 32) + g3 * load(patterns, 48)
        store(tables, to + i * (FLOATS // 4), low + high)
    for i in range(whole, size // (FLOATS // 4), 4):
        table = zero_floats()
        for k in range(i, count):
            table += load_splat(grad, at + k * step) * load(patterns, (k - i) * FLOATS)
        store(tables, to + i * (FLOATS // 4), table)


# ---------------------------------------------------------------------------------------- the signs

# 1, 2, 4, ..., one for each bit of an integer, and a vector of zeros.
POWERS = np.append(np.uint32(1) << np.arange(STEP, dtype=np.uint32), np.zeros(FLOATS, np.uint32))
POWERS = on_lines(POWERS.astype(np.uint32).view(np.int32))


class Turning(NamedTuple):
    """Where the vectors of signs that `turn` makes come from and go to.

    Attributes
    ----------
    starts : (...,) int64
        Where a row begins in the words.
    sources, shifts, places : (n,) int64, (n,) uint64, (n,) int64
        Word and bit of a source, counted from the row, and where its 16 integers go for the first
        32 rows.
    per, large, small : int
        For the 32 rows g they go ``g // per * large + g % per * small`` further on.
    """

    starts: np.ndarray
    sources: np.ndarray
    shifts: np.ndarray
    places: np.ndarray
    per: int
    large: int
    small: int


def vectors(taps, channels):
    """Where the vectors of 16 signs are in a packed row, for `turn`.

    Parameters
    ----------
    taps : (T,) int64
        Where the words of each tap begin.
    channels : int

    Returns
    -------
    channel : (n,) int64
        The first of each vector.
    sources, shifts : (T * n,) int64, (T * n,) uint64
    """
    channel = np.arange(0, channels, FLOATS)
    sources = np.add.outer(taps, channel // 64)
    shifts = np.broadcast_to(channel % 64, sources.shape).astype(np.uint64)
    return channel, sources.reshape(-1), shifts.reshape(-1)


@kernel(allocates=False)
def turn(first, end, _, words, turning, powers, turned):
    """Signs packed along channels become integers of 32 signs along rows.

    Bit j of lane i of the vector for rows 32 g, 32 g + 1, ... and source s is bit shifts[s] + i of
    words[starts[32 g + j] + sources[s]], for the groups g from first to end - 1.
    """
    starts, sources, shifts, places, per, large, small = turning
    for g in range(first, end):
        base = g // per * large + g % per * small
        for s in range(len(sources)):
            vector = load(powers, STEP)  # zeros
            for j in range(STEP):
                word = words[starts[g * STEP + j] + sources[s]]
                vector = or_where(vector, load_splat(powers, j), word >> shifts[s])
            store(turned, base + places[s], vector)


# -------------------------------------------------------------------------------------- the product


class Tables(NamedTuple):
    """Tables of a sum's gradients: those of step k, ``first <= k < end``, begin at a row's place
    plus ``offsets[k]``."""

    floats: np.ndarray
    offsets: np.ndarray
    first: int
    end: int


class Rows(NamedTuple):
    """For each of ``count`` rows, from ``table[at]`` on: where its tables begin, and its sums."""

    table: np.ndarray
    at: int
    count: int


class Signs(NamedTuple):
    """Integers of 32 signs, from ``at`` on: panels of ``panel_size``, of 64 for each step."""

    integers: np.ndarray
    at: int
    panel_size: int


class Sums(NamedTuple):
    """Where sums go, how many columns there are, and whether they are added to what is there.

    The columns are then whole panels.
    """

    out: np.ndarray
    columns: int
    adds: bool


# An addition takes a few cycles before the next one of the same sum can start: 4 rows times 64
# columns are 16 vectors of sums that do not wait for each other. A table then serves four vectors
# of signs, and a vector of signs four tables. AVX2 has 16 registers of 8 floats: 4 rows times 16
# columns, with the indices and their signs.
_WIDTH = LANES if "avx512f" in cpu_features() else FLOATS


def add_looked_up(tile, places, tables, step, index):
    """Each row plus the entries ``index % 16`` of its table, the 16 floats from place + step on."""
    rows = zip(tile, places, strict=True)
    return tuple([row + look_up(load(tables, p + step), index) for row, p in rows])


def _emit_looked_up(builder, row, pointer, index):
    return builder.fadd(row, pick(builder, load_lanes(builder, pointer, FLOATS), index))


compile_rows(add_looked_up, _emit_looked_up)


@subkernel
def product(rows, tables, signs, sums):
    """Rows of sums: for each row and column, all gradients of a row with their signs."""
    for row in range(0, rows.count, 4):
        # With fewer than 4 rows left, one is computed several times.
        a, last = rows.at + 2 * row, rows.at + 2 * (rows.count - 1)
        b, c, d = min(a + 2, last), min(a + 4, last), min(a + 6, last)
        table = rows.table
        places = table[a], table[b], table[c], table[d]
        targets = table[a + 1], table[b + 1], table[c + 1], table[d + 1]
        for column in range(0, sums.columns, _WIDTH):
            tile = four(zeros(_WIDTH))
            if sums.adds:
                tile = add_stored(tile, targets, sums.out)
            q = signs.at + column // LANES * signs.panel_size + column % LANES
            for step in range(tables.first, tables.end):
                index, t = load_like(signs.integers, q, tile[0]), tables.offsets[step]
                for _ in range(STEP // 4):
                    tile = add_looked_up(tile, places, tables.floats, t, index)
                    index = next_four(index)
                    t += FLOATS
                q += LANES
            store_tile(tile, targets, sums.out, sums.columns - column)
            targets = moved(targets, _WIDTH)
