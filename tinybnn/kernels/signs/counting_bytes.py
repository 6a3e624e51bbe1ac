"""Sign products by counting the bits of bytes: the method of ARM64.

NEON counts the bits of each byte of a vector in one instruction (``cnt``), but not those of words.
So the disagreements of a word and a filter are counted as 8 bytes, in three instructions per 128
signs: exclusive or, ``cnt``, and an addition of bytes. A word adds at most 8 to a byte, so up to 31
words are added (31 * 8 = 248, at most 255) before the 8 bytes of a filter become a 32-bit sum.

The block is chosen by the number of registers. NEON has 32 of 16 bytes, two filters each: 4 pixels
times 8 filters are 16 registers of counts, 4 of filters and 4 of pixels. The block of `counting`, 4
pixels times 32 filters, would be 64 registers of counts, most of them in memory. Larger blocks do
not fit, and other shapes of this size load more: 4 × 8 takes 8 loads for 48 instructions.

A panel has 16 columns, two halves of 8. Each half holds word 0 of each of its filters, then word 1
of each, and so on.

For speed alone. It has not been timed on ARM64, which `tinybnn bench kernels` does. llvm-mca 19
estimates these cycles per 128 signs for the inner loops, from their machine code::

                    counting 4 × 32    1 × 32    counting_bytes 4 × 8
    cortex-a72            3.56          2.64             1.74
    cortex-a76            3.97          2.70             1.73
    apple-m1              1.74          1.69             1.25

On cortex-a76 a step of `counting` has 498 instructions, 153 of which access the stack, for 64 times
128 signs; one of this method has 63, none of which does, for 16 times 128 signs.

The kernel is compiled from plain vector operations, so it is correct on every CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba.core import types

from tinybnn.kernels.machine.simd import (
    Vector,
    call_llvm,
    compiles,
    element_address,
    entry,
    everywhere,
    inlined,
    kernel,
    llvm_type,
    store,
    subkernel,
    zero_bytes,
    zero_integers,
)
from tinybnn.kernels.machine.tiles import four
from tinybnn.kernels.signs.counting import NEAR, PART, four_places, place_of
from tinybnn.kernels.signs.results import finish
from tinybnn.kernels.signs.tables import Tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tinybnn.kernels.machine.simd import Tile
    from tinybnn.typing import Array, Words

HALF = 8  # filters of a block
WIDE = NARROW = 2 * HALF  # columns of a panel
PANELS = np.int8  # dtype of the panels
_BYTES = 8 * HALF  # of a word of each filter of a block
_REGISTER = 16  # bytes
_VECTORS = _BYTES // _REGISTER
_FULL = 31  # words after which a byte may be full


def panel_words(panels: Words) -> NDArray[np.int8]:
    """Lay out (P, 16, L) words of filters as P panels, flat: (P, 2, L, 8) words as bytes."""
    count, _, length = panels.shape
    halves = panels.reshape(count, 2, HALF, length).swapaxes(2, 3)
    return np.ascontiguousarray(halves).reshape(-1).view(np.int8)


def words_of_panel(panel: NDArray[np.int8], length: int) -> Words:
    """Read the words of one panel back as (L, 16); the inverse of `panel_words`."""
    return panel.view(np.uint64).reshape(2, length, HALF).swapaxes(0, 1).reshape(length, WIDE)


# -------------------------------------------------------------------------------------- operations


def add_byte_counts(
    tile: tuple[Tile, ...],
    places: tuple[int, ...],
    words: Words,
    step: int,
    filters: tuple[NDArray[np.int8], Array],
    at: int,
) -> tuple[Tile, ...]:
    """Add to each row the bits of each byte in which words[place + step] differs from 8 filters.

    Parameters
    ----------
    tile : tuple of rows
        A row has 4 vectors, (16,) uint8: 8 bytes for each filter.
    places, words, step
        One word for each row.
    filters : (array, array)
        All panels and their masks, flat int8; without masks any array of another dtype.
    at : int
        Place of the words of the 8 filters.
    """
    panels, masks = filters
    weights, counts = panels[at : at + _BYTES].view(np.uint64), np.uint64(2**64 - 1)
    if masks.dtype == np.int8:
        counts = masks[at : at + _BYTES].view(np.uint64)
    differ = (words[np.add(places, step), None] ^ weights) & counts  # (rows, 8)
    bits = np.bitwise_count(differ.view(np.uint8)).reshape(len(tile), _VECTORS, _REGISTER)
    return tuple(np.add(tile, bits))


# Vectors are of one register each. Of wider ones, LLVM computes all exclusive ors of a step before
# it counts, for some CPUs, and then the registers do not suffice.


@compiles(add_byte_counts)
def _add_byte_counts(tile, places, words, step, filters, at):
    row, kind = tile.dtype, llvm_type(tile.dtype.dtype)

    def generate(context, builder, signature, values):
        tile_value, places_value, words_value, step_value, filters_value, at_value = values

        def vectors_of(i):
            """Load the bytes of the filters, or of their masks."""
            array = builder.extract_value(filters_value, i)
            pointer = element_address(context, builder, filters[i], array, at_value)
            pointer = builder.bitcast(pointer, kind.as_pointer())
            places = (
                builder.gep(pointer, [ir.Constant(ir.IntType(64), j)]) for j in range(len(row))
            )
            return [builder.load(place, align=8) for place in places]

        weights, rows = vectors_of(0), []
        counts = vectors_of(1) if filters[1].dtype == types.int8 else None
        for i in range(len(tile)):
            place = builder.add(builder.extract_value(places_value, i), step_value)
            word = builder.load(element_address(context, builder, words, words_value, place))
            word = builder.bitcast(everywhere(builder, word, kind.count // 8), kind)
            sums = []
            for j in range(len(row)):
                differ = builder.xor(word, weights[j])
                if counts is not None:
                    differ = builder.and_(differ, counts[j])
                bits = call_llvm(builder, f"llvm.ctpop.v{kind.count}i8", kind, differ)
                sums.append(builder.add(builder.extract_value(tile_value, [i, j]), bits))
            rows.append(context.make_tuple(builder, row, sums))
        return context.make_tuple(builder, tile, rows)

    return tile(tile, places, words, types.intp, filters, types.intp), generate


def add_widened(sums: Tile, tile: tuple[Tile, ...]) -> Tile:
    """Add to each row of int32 sums, one for each of 8 filters, the sum of the filter's bytes."""
    octets = [np.reshape(row, (-1, 8)).sum(1, dtype=np.int32) for row in tile]
    return tuple([row + new for row, new in zip(sums, octets, strict=True)])


@compiles(add_widened)
def _add_widened(sums, tile):
    def generate(context, builder, signature, values):
        results = []
        for i in range(len(tile)):
            total, row = (builder.extract_value(value, i) for value in values)
            parts = [builder.extract_value(row, j) for j in range(len(tile.dtype))]
            while len(parts) > 1:
                parts = [_concatenated(builder, *parts[j : j + 2]) for j in range(0, len(parts), 2)]
            row = parts[0]
            for _ in range(3):  # the sum of 8 bytes fits 16 bits
                row = _pair_sums(builder, row)
            results.append(builder.add(total, builder.zext(row, total.type)))
        return context.make_tuple(builder, sums, results)

    return sums(sums, tile), generate


def _pair_sums(builder, value):
    """Emit the sums of adjacent lanes, of 16 bits."""
    count = value.type.count // 2
    wide, kind = (ir.VectorType(ir.IntType(bits), count) for bits in (16, 32))
    lanes = (ir.Constant(kind, list(range(first, 2 * count, 2))) for first in range(2))
    halves = [builder.shuffle_vector(value, value, half) for half in lanes]
    return builder.add(
        *(half if half.type == wide else builder.zext(half, wide) for half in halves)
    )


def _concatenated(builder, a, b):
    count = 2 * a.type.count
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(count)))
    return builder.shuffle_vector(a, b, lanes)


def joined(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the lanes of ``a``, then those of ``b``."""
    return np.concatenate([a, b])


@compiles(joined)
def _joined(a, b):
    both = Vector(a.element, 2 * a.lanes)

    def generate(context, builder, signature, values):
        return _concatenated(builder, *values)

    return both(a, b), generate


# ------------------------------------------------------------------------------------------- blocks


@subkernel
def blocks(
    first: int,
    end: int,
    panel: int,
    panel_end: int,
    words: Words,
    base: int,
    masks: Array,
    arguments: tuple[Any, ...],
    target: tuple[Any, ...],
) -> None:
    """Multiply output pixels by panels, as `counting.blocks`."""
    tables = Tables(*arguments)
    panels = tables.group_columns // WIDE  # of a group
    batch = max(NEAR // (WIDE * len(tables.taps)), 1)
    for start in range(first, end, PART):
        stop, p = min(start + PART, end), panel
        while p < panel_end:
            group = p // panels
            after = min(p + batch, panel_end, (group + 1) * panels)
            columns = group, (p - group * panels) * WIDE, (after - group * panels) * WIDE
            _panel_sums(start, stop, columns, words, base, masks, tables, target)
            p = after


@inlined
def _panel_sums(first, end, columns, words, base, masks, tables, target):
    """Compute some columns of a group: (group, first column, end)."""
    group, c_first, c_end = columns
    taps, filters = tables.taps, (tables.panels, masks)
    places = tables.pixels, tables.rows, tables.image_stride
    origin, sums, bits, are_floats = target
    results = tables.constants, tables.flips, tables.filters, sums, bits, are_floats
    base += group * tables.group_stride
    column, channel = group * tables.group_columns, group * tables.group_filters
    step = 4 if end - first >= 4 else 1
    for i in range(first, end, step):
        if i > end - step:  # the last block moves back over finished pixels
            i = end - step
        row = i - origin
        if step == 1:
            a, r = place_of(i, base, places)
            for c in range(c_first, c_end, WIDE):
                at, place = column + c, (channel + c, tables.group_filters - c)
                tile, zero = (_row(),), (zero_integers(HALF),)
                q = 8 * at * len(taps)
                (m,) = _count(tile, zero, (a,), words, taps, filters, q)
                (n,) = _count(tile, zero, (a,), words, taps, filters, q + _BYTES * len(taps))
                _finish(m, n, at, r, row, place, results)
        else:
            a, (r0, r1, r2, r3) = four_places(i, base, places)
            for c in range(c_first, c_end, WIDE):
                at, place = column + c, (channel + c, tables.group_filters - c)
                tile, zero = four(_row()), four(zero_integers(HALF))
                q = 8 * at * len(taps)
                m0, m1, m2, m3 = _count(tile, zero, a, words, taps, filters, q)
                q += _BYTES * len(taps)
                n0, n1, n2, n3 = _count(tile, zero, a, words, taps, filters, q)
                _finish(m0, n0, at, r0, row, place, results)
                _finish(m1, n1, at, r1, row + 1, place, results)
                _finish(m2, n2, at, r2, row + 2, place, results)
                _finish(m3, n3, at, r3, row + 3, place, results)


@inlined
def _row():
    """Return zeros for a pixel: a vector of bytes for each register."""
    return four(zero_bytes(_REGISTER))


@inlined
def _count(zero, sums, places, words, taps, filters, q):
    """Count the disagreements of some pixels with the filters of half a panel."""
    for start in range(0, len(taps), _FULL):
        tile = zero
        for j in range(start, min(start + _FULL, len(taps))):
            tile = add_byte_counts(tile, places, words, entry(taps, j), filters, q)
            q += _BYTES
        sums = add_widened(sums, tile)
    return sums


@inlined
def _finish(m, n, c, r, row, place, results):
    counts = joined(m, n)
    finish(counts, counts + counts, c, r, row, place, results)


# --------------------------------------------------------------------------------- peak throughput


def register_loop(repetitions: int) -> int:
    """Count the words that a byte can hold, from the first-level cache; return the products."""
    words, panel = np.ones(_FULL + 3, np.uint64), np.zeros(_FULL * _BYTES, np.int8)
    _register_loop(repetitions, words, panel, np.zeros(0, np.uint8), np.zeros(HALF, np.int32))
    return repetitions * 4 * HALF * 64 * _FULL


@kernel(allocates=False)
def _register_loop(repetitions, words, panel, masks, out):
    for _ in range(repetitions):
        tile = four(_row())
        for j in range(_FULL):
            tile = add_byte_counts(tile, (0, 1, 2, 3), words, j, (panel, masks), j * _BYTES)
        a, b, c, d = add_widened(four(zero_integers(HALF)), tile)
        store(out, 0, a + b + c + d)
