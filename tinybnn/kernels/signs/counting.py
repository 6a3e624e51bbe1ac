"""Sign products by counting: an exclusive or and a population count for each word.

A panel has 32 columns, or 16. It holds word 0 of each of its filters, then word 1 of each, and so
on, so that one load gives the words of 8 filters: the even-numbered of 16 filters first, then the
odd-numbered. Shifting the odd-numbered counts into the upper halves of the even-numbered ones then
turns two vectors of 64-bit counts into one of 32-bit sums.

This method is used on CPUs that count the bits of a whole vector in one instruction (AVX-512 with
VPOPCNTDQ), and on x86 without byte shuffles. Others use `look_ups`, or on ARM64 `counting_bytes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types

from tinybnn.kernels.machine.simd import (
    WORDS,
    all_ones,
    call_llvm,
    chosen,
    everywhere,
    inlined,
    interleave,
    kernel,
    load_like,
    popcount,
    store,
    subkernel,
    zero_counts,
)
from tinybnn.kernels.machine.tiles import compile_rows, four
from tinybnn.kernels.signs.results import finish
from tinybnn.kernels.signs.tables import Tables

if TYPE_CHECKING:
    from tinybnn.typing import Array, Words

WIDE, NARROW = 4 * WORDS, 2 * WORDS  # columns of a panel
PANELS = np.uint64  # their dtype
PART = 256  # pixels that pass through all panels before the next ones: their words stay in cache
NEAR = 3072  # words of panels (24 KB) that stay in the first-level cache


def panel_words(panels: Words) -> Words:
    """Lay out (P, width, L) words of filters as P panels, flat: even columns, then odd columns."""
    count, width, length = panels.shape
    pairs = panels.reshape(count, width // (2 * WORDS), WORDS, 2, length)
    return np.ascontiguousarray(pairs.transpose(0, 4, 1, 3, 2)).reshape(-1)


def words_of_panel(panel: Words, length: int) -> Words:
    """Read the words of one panel back as (L, width); the inverse of `panel_words`."""
    return panel.reshape(length, -1, 2, WORDS).swapaxes(2, 3).reshape(length, -1)


def counted(masks: Array, index: int, words: Words) -> Words:
    """Load the mask of a vector of words, (lanes,) uint64: which bits count; all without masks.

    Without masks the result is a constant, and the compiler drops the `and`.
    """
    return load_like(masks, index, words) if masks.dtype == np.uint64 else all_ones(words)


@chosen(counted)
def _compiled_counted(masks, index, words):
    if masks.dtype == types.uint64:
        return lambda masks, index, words: load_like(masks, index, words)
    return lambda masks, index, words: all_ones(words)


def count_disagreements(
    tile: tuple[Words, ...],
    places: tuple[int, ...],
    words: Words,
    step: int,
    filters: tuple[Words, Words],
) -> tuple[Words, ...]:
    """Add to each row the number of bits in which words[place + step] differs from each filter.

    ``filters`` are a vector of filter words and a vector of their masks.
    """
    weights, counts = filters
    rows = zip(tile, places, strict=True)
    return tuple([row + popcount((words[p + step] ^ weights) & counts) for row, p in rows])


def _emit_disagreements(builder, row, pointer, filters):
    weights, counts = (builder.extract_value(filters, i) for i in range(2))
    word = everywhere(builder, builder.load(pointer), row.type.count)
    differ = builder.and_(builder.xor(word, weights), counts)
    name = f"llvm.ctpop.v{row.type.count}i64"
    return builder.add(row, call_llvm(builder, name, row.type, differ))


compile_rows(count_disagreements, _emit_disagreements)


# The inner loops. Counting the disagreements of a vector of words takes three instructions: xor,
# popcount, add. To keep them busy, their operands must be in registers: a block of 4 pixels times
# 32 filters has 16 vectors of counts, and each word loaded in a step (4 vectors of 8 filters, 4
# words of pixels) is used 4 times, so that 8 loads serve 48 instructions. The 16 counts are
# independent, so none waits for another.
#
# With few words per pixel a block is short, and its overhead matters: a pixel's addresses are
# looked up once for a batch of panels, as many as stay in the first-level cache.


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
    """Multiply output pixels first to end - 1 by panels panel to panel_end - 1.

    Image n begins at words[base + n * image_stride]. The results go to ``target``: see
    `xnor._blocks`.
    """
    tables = Tables(*arguments)
    wide = tables.group_columns // WIDE  # wide panels per group
    panels = (tables.group_columns + NARROW) // WIDE
    batch = max(NEAR // (WIDE * len(tables.taps)), 1)
    for start in range(first, end, PART):
        stop = min(start + PART, end)
        for group in range(panel // panels, (panel_end - 1) // panels + 1):
            p_end = min(panel_end - group * panels, panels)
            for p in range(max(panel - group * panels, 0), min(p_end, wide), batch):
                columns = group, p * WIDE, min(p + batch, p_end, wide) * WIDE
                _panel_sums(
                    zero_counts(WIDE), start, stop, columns, words, base, masks, tables, target
                )
            if p_end > wide:
                columns = group, wide * WIDE, wide * WIDE + NARROW
                zero = zero_counts(NARROW)
                _panel_sums(zero, start, stop, columns, words, base, masks, tables, target)


@inlined
def _panel_sums(zero, first, end, columns, words, base, masks, tables, target):
    """Compute some columns of a group: (group, first column, end), panels as wide as ``zero``."""
    group, c_first, c_end = columns
    taps, panels = tables.taps, (tables.panels, masks)
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
            for c in range(c_first, c_end, len(zero)):
                at, place = column + c, (channel + c, tables.group_filters - c)
                (n,) = _count((zero,), (a,), words, taps, panels, at * len(taps))
                _finish(n, at, r, row, place, results)
        else:
            a, (r0, r1, r2, r3) = four_places(i, base, places)
            for c in range(c_first, c_end, len(zero)):
                at, place = column + c, (channel + c, tables.group_filters - c)
                n0, n1, n2, n3 = _count(four(zero), a, words, taps, panels, at * len(taps))
                _finish(n0, at, r0, row, place, results)
                _finish(n1, at, r1, row + 1, place, results)
                _finish(n2, at, r2, row + 2, place, results)
                _finish(n3, at, r3, row + 3, place, results)


@inlined
def four_places(
    i: int, base: int, places: tuple[Any, ...]
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Return the first words and the rows of constants of output pixels i to i + 3."""
    pixels, rows, stride = places
    if len(pixels) == 1:  # a matrix product: nothing to look up
        a = base + i * stride
        return (a, a + stride, a + 2 * stride, a + 3 * stride), (0, 0, 0, 0)
    image, p = i // len(pixels), i % len(pixels)
    if p + 4 <= len(pixels):
        a = base + image * stride
        firsts = a + pixels[p], a + pixels[p + 1], a + pixels[p + 2], a + pixels[p + 3]
        return firsts, (rows[p], rows[p + 1], rows[p + 2], rows[p + 3])
    (a0, r0), (a1, r1) = place_of(i, base, places), place_of(i + 1, base, places)
    (a2, r2), (a3, r3) = place_of(i + 2, base, places), place_of(i + 3, base, places)
    return (a0, a1, a2, a3), (r0, r1, r2, r3)


@inlined
def place_of(i: int, base: int, places: tuple[Any, ...]) -> tuple[int, int]:
    """Return an output pixel's first word and its row of constants."""
    pixels, rows, stride = places
    image, pixel = i // len(pixels), i % len(pixels)
    return base + image * stride + pixels[pixel], rows[pixel]


@inlined
def _count(tile, places, words, taps, panels, q):
    """Count the disagreements of some pixels with the filters of a panel."""
    filters, masks = panels
    for j in range(len(taps)):
        w = load_like(filters, q, tile[0])
        tile = count_disagreements(tile, places, words, taps[j], (w, counted(masks, q, w)))
        q += len(w)
    return tile


@inlined
def _finish(counts, c, r, row, place, results):
    n = interleave(counts)
    finish(n, n + n, c, r, row, place, results)


# --------------------------------------------------------------------------------- peak throughput


def register_loop(repetitions: int) -> int:
    """Count bits in registers, without loads; return the number of sign products."""
    _register_loop(repetitions, np.ones(WIDE, np.uint64))
    return repetitions * 4 * WIDE * 64


@kernel
def _register_loop(repetitions, words):
    w = load_like(words, 0, zero_counts(WIDE))
    c0, c1, c2, c3 = four(zero_counts(WIDE))
    for _ in range(repetitions):
        # Each count feeds its next value, so that the compiler cannot hoist anything.
        c0 += popcount(c0 ^ w)
        c1 += popcount(c1 ^ w)
        c2 += popcount(c2 ^ w)
        c3 += popcount(c3 ^ w)
    store(words, 0, c0 + c1 + c2 + c3)
