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
"""

from __future__ import annotations

import numpy as np

from tinybnn.kernels.machine.memory import on_lines
from tinybnn.kernels.machine.selection import look_up, next_four, or_where
from tinybnn.kernels.machine.simd import (
    FLOATS,
    cpu_features,
    inlined,
    kernel,
    load,
    load_splat,
    store,
    store_first,
    store_four,
    zero_floats,
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
    for four in range(fours):
        out += tables[:, four, numbers[four]]
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


@kernel(allocates=False)
def turn(first, end, _, words, starts, sources, shifts, places, per, large, small, powers, turned):
    """Signs packed along channels become integers of 32 signs along rows.

    Bit j of lane i of the vector for rows 32 g, 32 g + 1, ... and source s is bit shifts[s] + i of
    words[starts[32 g + j] + sources[s]].

    Parameters
    ----------
    first, end : int
        The groups g of 32 rows.
    starts : (...,) int64
        Where a row begins in ``words``.
    sources, shifts, places : (n,) int64, (n,) uint64, (n,) int64
        The last says where in ``turned`` the 16 integers of a source go, for g = 0.
    per, large, small : int
        For other g they go ``g // per * large + g % per * small`` further on.
    """
    for g in range(first, end):
        base = g // per * large + g % per * small
        for s in range(len(sources)):
            vector = load(powers, STEP)  # zeros
            for j in range(STEP):
                word = words[starts[g * STEP + j] + sources[s]]
                vector = or_where(vector, load_splat(powers, j), word >> shifts[s])
            store(turned, base + places[s], vector)


# -------------------------------------------------------------------------------------- the product


# An addition takes a few cycles before the next one of the same sum can start: 4 rows times 64
# columns are 16 vectors of sums that do not wait for each other. A table then serves four vectors
# of signs, and a vector of signs four tables.
@kernel(allocates=False)
def _product_of_64(
    tables, rows, rows_at, count, offsets, first, end, turned, at, panel_size, lanes, add, out
):
    """Rows of sums: for each row and column, all gradients of a row with their signs.

    Parameters
    ----------
    tables : (...,) float32
    rows : (...,) int64
        From ``rows_at`` on, for each of ``count`` rows: where its tables begin, and where its sums
        are in ``out``.
    offsets : (...,) int64
        From ``first`` to ``end``, for each step: where its tables are, from the row's first.
    turned : (...,) int32
        From ``at`` on, panel after panel of ``panel_size``, for each step: 64 integers of 32 signs.
    lanes : int
        Columns.
    add : bool
        Whether to add to what is in ``out``. The columns are then whole panels.
    """
    for row in range(0, count, 4):
        # With fewer than 4 rows left, one is computed several times.
        a0 = rows_at + 2 * row
        a1, a2 = rows_at + 2 * min(row + 1, count - 1), rows_at + 2 * min(row + 2, count - 1)
        a3 = rows_at + 2 * min(row + 3, count - 1)
        for panel in range((lanes + LANES - 1) // LANES):
            column = panel * LANES
            o0, o1, o2, o3 = (
                rows[a0 + 1] + column,
                rows[a1 + 1] + column,
                rows[a2 + 1] + column,
                rows[a3 + 1] + column,
            )
            s00, s01, s02, s03 = _sums(out, o0, add)
            s10, s11, s12, s13 = _sums(out, o1, add)
            s20, s21, s22, s23 = _sums(out, o2, add)
            s30, s31, s32, s33 = _sums(out, o3, add)
            q = at + panel * panel_size
            for step in range(first, end):
                i0, i1 = load(turned, q), load(turned, q + 16)
                i2, i3 = load(turned, q + 32), load(turned, q + 48)
                t = offsets[step]
                for _ in range(STEP // 4):
                    table = load(tables, rows[a0] + t)
                    s00 += look_up(table, i0)
                    s01 += look_up(table, i1)
                    s02 += look_up(table, i2)
                    s03 += look_up(table, i3)
                    table = load(tables, rows[a1] + t)
                    s10 += look_up(table, i0)
                    s11 += look_up(table, i1)
                    s12 += look_up(table, i2)
                    s13 += look_up(table, i3)
                    table = load(tables, rows[a2] + t)
                    s20 += look_up(table, i0)
                    s21 += look_up(table, i1)
                    s22 += look_up(table, i2)
                    s23 += look_up(table, i3)
                    table = load(tables, rows[a3] + t)
                    s30 += look_up(table, i0)
                    s31 += look_up(table, i1)
                    s32 += look_up(table, i2)
                    s33 += look_up(table, i3)
                    i0, i1, i2, i3 = next_four(i0), next_four(i1), next_four(i2), next_four(i3)
                    t += FLOATS
                q += LANES
            store_four(out, o0, (s00, s01, s02, s03), lanes - column)
            store_four(out, o1, (s10, s11, s12, s13), lanes - column)
            store_four(out, o2, (s20, s21, s22, s23), lanes - column)
            store_four(out, o3, (s30, s31, s32, s33), lanes - column)


# AVX2 has 16 registers of 8 floats: 4 rows times 16 columns, with the indices and their signs.
@kernel(allocates=False)
def _product_of_16(
    tables, rows, rows_at, count, offsets, first, end, turned, at, panel_size, lanes, add, out
):
    """The same for CPUs with few registers: a quarter of a panel at a time."""
    for row in range(0, count, 4):
        a0 = rows_at + 2 * row
        a1, a2 = rows_at + 2 * min(row + 1, count - 1), rows_at + 2 * min(row + 2, count - 1)
        a3 = rows_at + 2 * min(row + 3, count - 1)
        for column in range(0, lanes, FLOATS):
            s0, s1, s2, s3 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
            q = at + column // LANES * panel_size + column % LANES
            for step in range(first, end):
                index = load(turned, q)
                t = offsets[step]
                for _ in range(STEP // 4):
                    s0 += look_up(load(tables, rows[a0] + t), index)
                    s1 += look_up(load(tables, rows[a1] + t), index)
                    s2 += look_up(load(tables, rows[a2] + t), index)
                    s3 += look_up(load(tables, rows[a3] + t), index)
                    index = next_four(index)
                    t += FLOATS
                q += LANES
            o0, o1 = rows[a0 + 1] + column, rows[a1 + 1] + column
            o2, o3 = rows[a2 + 1] + column, rows[a3 + 1] + column
            if add:
                s0, s1, s2, s3 = (
                    s0 + load(out, o0),
                    s1 + load(out, o1),
                    s2 + load(out, o2),
                    s3 + load(out, o3),
                )
            store_first(out, o0, s0, lanes - column)
            store_first(out, o1, s1, lanes - column)
            store_first(out, o2, s2, lanes - column)
            store_first(out, o3, s3, lanes - column)


product = _product_of_64 if "avx512f" in cpu_features() else _product_of_16


@inlined
def _sums(out, at, add):
    """Four vectors of sums to begin with."""
    if add:
        return load(out, at), load(out, at + 16), load(out, at + 32), load(out, at + 48)
    return zero_floats(), zero_floats(), zero_floats(), zero_floats()
