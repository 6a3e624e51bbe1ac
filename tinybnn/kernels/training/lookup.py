"""Products of floats and signs by lookup tables.

A sum of K gradients with signs, ±g0 ±g1 ±g2 ..., consists of sums of four, and four gradients have
only 16 sums ±g0 ±g1 ±g2 ±g3. Compute these once as a table. Then, for each column c, four signs,
read as a number from 0 to 15, index the sum it needs::

    number   signs      sum
    0        - - - -    -g0 -g1 -g2 -g3
    1        + - - -    +g0 -g1 -g2 -g3
    2        - + - -    -g0 +g1 -g2 -g3
    ...
    15       + + + +    +g0 +g1 +g2 +g3

One look-up and one addition replace four multiplications and four additions. (Tables of all sums of
a few rows are the Method of the Four Russians, Arlazarov, Dinic, Kronrod and Faradzhev 1970.) All
rows of gradients meet the same signs. So an entry is a vector, the sums of 16 adjacent rows, and a
look-up loads it from the address that the signs determine. Every CPU can do that.

A table of 16 entries of 16 floats takes 1 KB. The tables of a *chunk* of gradients stay in the
first-level cache while all columns look up their sums, and the sums of the columns, also for 16
rows at a time, in the second-level cache. Tables are worth building if there are many columns.

Signs arrive packed along the columns; `transpose_signs` transposes them to table indices.

For speed alone: `product_reference` is the plain NumPy version, and `sign_gradients` shows what it
gains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn.kernels.machine import parallel
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.selection import four_signs
from tinybnn.kernels.machine.simd import (
    FLOATS,
    entry,
    inlined,
    kernel,
    load,
    load_like,
    store,
    store_first,
    zero_floats,
    zeros,
)
from tinybnn.kernels.machine.tiles import add_stored, four, store_tile, transposed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tinybnn.typing import Array, FloatArray, Words

TABLE = 16 * FLOATS  # floats of a table
STEPS = 16  # tables of a chunk
CHUNK = 4 * STEPS  # its gradients
PANEL = FLOATS  # columns whose signs are transposed together

# Pattern j: the sign of gradient j in sum number i.
PATTERNS = np.where(np.arange(16) >> np.arange(4)[:, None] & 1, 1, -1).astype(np.float32)


def product_reference(grad: FloatArray, signs: Array) -> NDArray[np.float32]:
    """Compute ``grad @ signs`` by lookup tables in plain NumPy, in the kernels' order of sums.

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
    more = -length % 4  # zeros fill up the last four gradients: their signs do not matter
    grad, signs = np.pad(grad, ((0, 0), (0, more))), np.pad(signs, ((0, more), (0, 0)))
    fours = (length + more) // 4
    terms = grad.reshape(rows, fours, 4, 1) * PATTERNS  # (M, K/4, 4, 16)
    tables = (terms[:, :, 0] + terms[:, :, 1]) + (terms[:, :, 2] + terms[:, :, 3])
    bits = (signs > 0).reshape(fours, 4, columns)
    numbers = (bits << np.arange(4)[:, None]).sum(1)  # (K/4, C)
    out = np.zeros((rows, columns), np.float32)
    for step in range(fours):
        out += tables[:, step, numbers[step]]
    return out


# -------------------------------------------------------------------------------------------- signs


class SignLayout(NamedTuple):
    """Addresses of the signs in packed rows, for `transpose_signs`.

    Attributes
    ----------
    starts : (...,) int64
        Start of each row in the words; their number is a multiple of four.
    sources, shifts : (n,) int64, (n,) uint64
        Word, relative to the row, and bit of each panel of 16 columns.
    """

    starts: np.ndarray
    sources: np.ndarray
    shifts: np.ndarray


def sign_layout(starts: NDArray[np.int64], taps: NDArray[np.int64], channels: int) -> SignLayout:
    """Compute the `SignLayout` of rows whose columns are the channels of each tap.

    Parameters
    ----------
    starts : (...,) int64
        Starts of rows; the last is repeated for gradients that are zero.
    taps : (T,) int64
        Offsets of the words of each tap.
    channels : int
        Channels of a tap; rounded up to whole panels.

    Returns
    -------
    SignLayout
    """
    starts = np.append(starts, np.full(-len(starts) % 4, starts[-1]))
    channel = np.arange(0, channels, PANEL)
    sources = np.add.outer(taps, channel // 64)
    shifts = np.broadcast_to(channel % 64, sources.shape).astype(np.uint64)
    return SignLayout(starts, sources.reshape(-1), shifts.reshape(-1))


def sign_indices(layout: SignLayout, words: Words, tasks: int) -> NDArray[np.int32]:
    """Transpose all signs to table indices.

    Returns
    -------
    (chunks * panels * STEPS * PANEL / 4,) int32
        Four bytes each. A byte is 16 times a number from 0 to 15, whose bits are the signs of four
        rows: the index of an entry in its table.
    """
    chunks = -(-len(layout.starts) // CHUNK)
    numbers = empty(chunks * len(layout.sources) * STEPS * PANEL // 4, np.int32)
    shares = parallel.shares(chunks, min(tasks, chunks))
    parallel.share_out(transpose_signs, shares, words, layout, numbers)
    return numbers


@kernel(allocates=False)
def transpose_signs(
    first: int, end: int, _: int, words: Words, layout: SignLayout, numbers: NDArray[np.int32]
) -> None:
    """Transpose the signs of chunks first to end - 1; arrays as in `sign_indices`."""
    starts, sources, shifts = layout
    for chunk in range(first, end):
        end_row = min((chunk + 1) * CHUNK, len(starts))
        for s in range(len(sources)):
            source, shift = sources[s], shifts[s]
            to = (chunk * len(sources) + s) * (STEPS * PANEL // 4)
            for row in range(chunk * CHUNK, end_row, 4):
                a, b = words[starts[row] + source], words[starts[row + 1] + source]
                c, d = words[starts[row + 2] + source], words[starts[row + 3] + source]
                store(numbers, to, four_signs(a >> shift, b >> shift, c >> shift, d >> shift))
                to += PANEL // 4


# ------------------------------------------------------------------------------------------- tables


@inlined
def make_tables(
    vectors: NDArray[np.float32],
    at: int,
    step: int,
    count: int,
    tables: NDArray[np.float32],
    to: int,
) -> int:
    """Build the tables of ``count`` vectors of 16 gradients, ``step`` apart, padded with zeros.

    Parameters
    ----------
    vectors : (...,) float32
        The gradients, from ``at`` on.
    tables : (...,) float32
        Written from ``to`` on.

    Returns
    -------
    int
        The number of tables.
    """
    for i in range(0, count, 4):
        a = load(vectors, at + i * step)
        b = load(vectors, at + (i + 1) * step) if i + 1 < count else zero_floats()
        c = load(vectors, at + (i + 2) * step) if i + 2 < count else zero_floats()
        d = load(vectors, at + (i + 3) * step) if i + 3 < count else zero_floats()
        table = to + i * (TABLE // 4)
        _store_four(tables, table, a, b, zero_floats() - (c + d))
        _store_four(tables, table + 4 * FLOATS, a, b, c - d)
        _store_four(tables, table + 8 * FLOATS, a, b, d - c)
        _store_four(tables, table + 12 * FLOATS, a, b, c + d)
    return (count + 3) // 4


@inlined
def _store_four(tables, to, a, b, others):
    """Store four entries: ±a ±b plus the sum of the third and the fourth gradient."""
    store(tables, to, (zero_floats() - (a + b)) + others)
    store(tables, to + FLOATS, (a - b) + others)
    store(tables, to + 2 * FLOATS, (b - a) + others)
    store(tables, to + 3 * FLOATS, (a + b) + others)


# ------------------------------------------------------------------------------------------ product


@inlined
def add_looked_up(
    tables: NDArray[np.float32],
    table: int,
    steps: int,
    numbers: NDArray[np.int32],
    at: int,
    sums: NDArray[np.float32],
    to: int,
    columns: int,
) -> None:
    """Add to each column's sums the entries that it looks up in the tables of a chunk.

    Parameters
    ----------
    tables : (...,) float32
    table : int
        Start of the first table.
    steps : int
        Number of tables.
    numbers : (...,) int32
    at : int
        Start of the first panel's indices, (panels, STEPS, PANEL / 4).
    sums : (...,) float32
    to : int
        Start of the first column's sums, 16 floats per column; with room for whole panels.
    columns : int
    """
    for column in range(0, columns, 4):
        q = at + column // PANEL * (STEPS * PANEL // 4) + column % PANEL // 4
        place = to + column * FLOATS
        places = place, place + FLOATS, place + 2 * FLOATS, place + 3 * FLOATS
        tile = add_stored(four(zeros(FLOATS)), places, sums)
        t = np.int64(table)
        for _ in range(steps):
            four_numbers = np.int64(entry(numbers, q))
            a, b = t + (four_numbers & 255), t + (four_numbers >> 8 & 255)
            c, d = t + (four_numbers >> 16 & 255), t + (four_numbers >> 24 & 255)
            tile = add_stored(tile, (a, b, c, d), tables)
            t += TABLE
            q += PANEL // 4
        store_tile(tile, places, sums, FLOATS)


# ----------------------------------------------------------------------------------- transposition


@inlined
def transpose_rows(
    rows: NDArray[np.float32],
    places: NDArray[np.int64],
    first: int,
    offset: int,
    length: int,
    vectors: NDArray[np.float32],
    to: int,
) -> None:
    """Transpose 16 rows: vectors[to + 16 i + r] = rows[places[first + r] + offset + i].

    A row with a negative place is read as zeros. ``length`` is rounded up to a multiple of four.
    ``rows`` and ``vectors`` are flat float32, ``places`` int64.
    """
    for r in range(0, FLOATS, 4):
        at = first + r
        a, b, c, d = places[at], places[at + 1], places[at + 2], places[at + 3]
        for i in range(offset, offset + length, 4):
            place = to + (i - offset) * FLOATS + r
            ends = place, place + FLOATS, place + 2 * FLOATS, place + 3 * FLOATS
            four_rows = _four(rows, a, i), _four(rows, b, i), _four(rows, c, i), _four(rows, d, i)
            store_tile(transposed(four_rows), ends, vectors, 4)


@inlined
def transpose_back(
    vectors: NDArray[np.float32],
    at: int,
    length: int,
    rows: NDArray[np.float32],
    places: NDArray[np.int64],
    first: int,
    offset: int,
) -> None:
    """Transpose back: rows[places[first + r] + offset + i] = vectors[at + 16 i + r].

    A row with a negative place is skipped. Vectors are read up to a multiple of four. Arrays as in
    `transpose_rows`.
    """
    for r in range(0, FLOATS, 4):
        to = first + r
        a, b, c, d = places[to], places[to + 1], places[to + 2], places[to + 3]
        are_there = min(min(a, b), min(c, d)) >= 0
        for i in range(0, length, 4):
            place, to = at + i * FLOATS + r, offset + i
            columns = (
                _four(vectors, place, 0), _four(vectors, place, FLOATS),
                _four(vectors, place, 2 * FLOATS), _four(vectors, place, 3 * FLOATS),
            )  # fmt: skip
            tile = transposed(columns)
            if are_there:
                store_tile(tile, (a + to, b + to, c + to, d + to), rows, length - i)
            else:
                _store_four_floats(rows, a, to, tile[0], length - i)
                _store_four_floats(rows, b, to, tile[1], length - i)
                _store_four_floats(rows, c, to, tile[2], length - i)
                _store_four_floats(rows, d, to, tile[3], length - i)


@inlined
def _four(rows, place, offset):
    """Load four floats of a row; zeros if its place is negative."""
    return load_like(rows, place + offset, zeros(4)) if place >= 0 else zeros(4)


@inlined
def _store_four_floats(rows, place, offset, floats, count):
    """Store the first ``count`` of four floats to a row, unless its place is negative."""
    if place >= 0:
        store_first(rows, place + offset, floats, count)
