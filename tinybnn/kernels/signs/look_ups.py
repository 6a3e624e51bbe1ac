"""Products of signs by look-ups: no exclusive or and no population count is executed.

Take 4 signs of a pixel as a nibble a, and 4 signs of a filter as a nibble b: popcount(a ^ b) is
what a table of 16 entries, that of a, has for b. A byte shuffle looks up 32 nibbles at once, and an
entry, at most 4, needs half a byte, so that one byte has the counts of two pixels::

    table of (a0, a1) at b:  popcount(a0 ^ b) | popcount(a1 ^ b) << 4

There are 256 such tables, 4 KB in all. Where the table of a pair lies, 16 * (a0 | a1 << 4), is
written down once for each nibble of an image, for each pixel and its neighbour (`images.pad`).

Three entries are added before a half of a byte could overflow (12 of 15); then they are added to a
byte's total, and shifted by a nibble to another. Both overflow, without loss: `shuffles.add_tile`
says how the counts of both pixels follow, after 63 look-ups (252 of 255). Three nibbles of two
pixels and 32 filters, 768 products, take 3 shuffles, 4 additions and a shift. Rows are cut into
such parts: a part of a panel and the places that meet it stay in the nearest cache.

A panel has 128 columns; the last one of a group may have fewer. It holds nibble 0 of each of its
filters, then nibble 1 of each; among the bytes of a vector, the filters of the first half have even
places and those of the second odd ones, so that widening puts them in order.

What was tried and was not faster: tiles of two pairs and two vectors, whose loads are as many and
whose registers are too few; entries of 0 to 2, half the disagreements up to what the nibbles'
parities say, of which seven can be added, since loads and not additions are the limit, and the
parities of each pixel have to be counted. Carry-save adders over bits (Harley and Seal) would need
more instructions, even with those of AVX-512 that take three operands.

T-MAC (Wei et al. 2024, arXiv:2407.00088) looks up sums of activations by shuffles in the same way.
`tinybnn bench kernels` shows what the method reaches.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.kernels.machine.memory import empty, on_lines
from tinybnn.kernels.machine.shuffles import (
    BYTES,
    add_look_up,
    add_three_look_ups,
    add_tile,
    load_widened,
    on_stack,
    zero_tile_of,
)
from tinybnn.kernels.machine.simd import entry, inlined, kernel, subkernel
from tinybnn.kernels.machine.windows import Windows
from tinybnn.kernels.signs.results import finish
from tinybnn.kernels.signs.tables import LookUps, Tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tinybnn.typing import Array, Words

WIDE, MEDIUM, NARROW = 128, 64, 32 if BYTES == 32 else 64  # columns of a panel
MOST_TERMS = 2**15 - 1  # signs whose disagreements a sum holds, twice of ternary weights
LEAST_TERMS = 128  # of fewer, to find the tables of a pixel costs as much as it brings
_FULL = 63  # look-ups after which a byte is full
_PAIRS = 32  # pairs of pixels that pass through all panels before the next ones


# ----------------------------------------------------------------------------------------- layout


@functools.cache
def entries() -> NDArray[np.uint8]:
    """All tables, (4096,) uint8: that of the pair a begins at 16 a."""
    pairs, nibbles = np.arange(256)[:, None], np.arange(16)
    first, second = (
        np.bitwise_count((pairs & 15) ^ nibbles),
        np.bitwise_count((pairs >> 4) ^ nibbles),
    )
    return on_lines((first | second << 4).astype(np.uint8).reshape(-1))


def segments(starts: Sequence[int], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`LookUps.segments` and `.parts` of taps of ``count`` nibbles that begin at ``starts``."""
    runs, total = [], len(starts) * count
    for start in starts:
        if runs and sum(runs[-1]) == start:  # side by side
            runs[-1][1] += count
        else:
            runs.append([start, count])
    size = -(-total // -(-total // _FULL))  # parts of about the same length,
    size += -size % 3  # of whole threes
    table, parts, done = [], [0], 0
    for start, length in runs:
        while length:
            some = min(length, size - done % size)
            table += [start, some]
            start, length, done = start + some, length - some, done + some
            if done % size == 0 or done == total:
                parts.append(len(table))
    return np.array(table), np.array(parts)


def nibbles(words: Words) -> NDArray[np.uint8]:
    """(N, W) words -> (N, 16 * W)."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    return np.stack([octets & 15, octets >> 4], -1).reshape(len(words), 16 * words.shape[1])


def panel_nibbles(panels: Words, count: int) -> NDArray[np.uint8]:
    """(P, width, taps, W) words of filters -> P panels of the first nibbles of each tap."""
    number, width, taps, length = panels.shape
    halves = panels.reshape(number, width // BYTES, 2, BYTES // 2, taps, length)
    octets = np.ascontiguousarray(halves.swapaxes(2, 3)).view(np.uint8)  # in the lanes' order
    octets = octets.reshape(number, width, taps, 8 * length)[..., : (count + 1) // 2]
    octets = np.ascontiguousarray(octets.transpose(0, 2, 3, 1))  # (P, taps, bytes, width)
    result = empty((*octets.shape[:3], 2, width), np.uint8)
    np.bitwise_and(octets, 15, out=result[..., 0, :])
    np.right_shift(octets, 4, out=result[..., 1, :])
    result = result.reshape(number, taps, 2 * octets.shape[2], width)
    return result[:, :, :count].reshape(-1)


def nibbles_of_panel(panel: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """The nibbles of one panel -> (K, width), the reverse of `panel_nibbles`."""
    halves = panel.reshape(length, -1, BYTES // 2, 2).swapaxes(2, 3)
    return halves.reshape(length, -1)


# ---------------------------------------------------------------------------------------- kernels

_place_of, _pixel_of = on_stack(np.int64, _PAIRS), on_stack(np.int64, _PAIRS + 1)
_ZEROS = _PAIRS * 2 * WIDE  # where in the memory for sums there are zeros
_sums_of = on_stack(np.uint16, _ZEROS + 2 * WIDE)
_wide_tile, _medium_tile, _narrow_tile = (zero_tile_of(width) for width in (WIDE, MEDIUM, NARROW))


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
    """What `counting.blocks` does. ``masks`` are empty."""
    tables, (origin, out, bits, are_floats) = Tables(*arguments), target
    look_ups, out_width = LookUps(*tables.look_ups), Windows(*tables.windows).out_width
    images = tables.pixels, out_width, tables.image_stride, look_ups.image_words
    table = words, look_ups.entries, tables.panels, look_ups.segments, look_ups.parts
    results = tables.constants, tables.flips, tables.filters, out, bits, are_floats
    places, pixels, sums = _place_of(), _pixel_of(), _sums_of()
    for i in range(2 * WIDE):
        sums[_ZEROS + i] = 0
    panels = (tables.group_columns + WIDE - 1) // WIDE
    start = first
    while start < end:
        pairs = _find_pairs(start, end, base, places, pixels, images)
        for p in range(panel, panel_end):
            group, first_column = p // panels, p % panels * WIDE
            column = group * tables.group_columns + first_column
            left = tables.group_filters - first_column
            width = min(WIDE, tables.group_columns - first_column)
            shift, at = 16 * group * tables.group_stride, column * look_ups.count
            if width == WIDE:
                _count(_wide_tile(), pairs, shift, at, places, sums, table)
            elif width == MEDIUM:
                _count(_medium_tile(), pairs, shift, at, places, sums, table)
            else:
                _count(_narrow_tile(), pairs, shift, at, places, sums, table)
            # Output channels of a group follow one another, as do its columns.
            channel = group * tables.group_filters + first_column
            some = column, channel, min(left, width), width
            is_twofold = look_ups.is_twofold
            _finish(pairs, some, origin, pixels, sums, is_twofold, tables.rows, results)
        start = entry(pixels, pairs)


@inlined
def _find_pairs(i, end, base, places, pixels, images):
    """Find some pairs from pixel i on: their places and first pixels; the number of pairs.

    Behind the pixels is the one that comes next.
    """
    starts, out_width, stride, image_words = images
    count = 0
    while i < end and count < _PAIRS:
        image, p = i // len(starts), i % len(starts)
        at = base + image * stride + image_words
        places[count], pixels[count] = 4 * at + 16 * entry(starts, p), i
        count += 1
        is_beside = image_words == 0 or (p + 1) % out_width > 0
        i += 2 if is_beside and i + 1 < end else 1
    pixels[count] = i
    return count


@inlined
def _count(zero, pairs, shift, at, places, sums, table):
    """Disagreements of some pairs of pixels with a panel: (pairs, 2, width) ``sums``."""
    (words, entries, panels, segments, parts), width = table, len(zero) // 2 * BYTES
    for part in range(len(parts) - 1):
        after = at
        for i in range(pairs):
            tile, after = zero, at
            for s in range(entry(parts, part), entry(parts, part + 1), 2):
                k = entry(places, i) + shift + entry(segments, s)
                end = k + entry(segments, s + 1)
                while k + 3 <= end:
                    tile = add_three_look_ups(tile, k, words, entries, panels, after)
                    k, after = k + 3, after + 3 * width
                while k < end:
                    tile = add_look_up(tile, k, words, entries, panels, after)
                    k, after = k + 1, after + width
            to = i * 2 * width
            add_tile(sums, to, to if part > 0 else _ZEROS, tile)
        at = after


@inlined
def _finish(pairs, some, origin, pixels, sums, is_twofold, rows, results):
    """Sums or bits of the pixels of some pairs and of the filters of a panel."""
    column, channel, count, width = some
    for i in range(pairs):
        first = entry(pixels, i)
        for j in range(entry(pixels, i + 1) - first):
            r = entry(rows, (first + j) % len(rows))
            for c in range(0, count, 32):
                n = load_widened(sums, (2 * i + j) * width + c)
                taken = n + n
                if is_twofold:
                    taken = n
                place = channel + c, count - c
                finish(n, taken, column + c, r, first + j - origin, place, results)


# ------------------------------------------------------------------------------ what can be reached


def register_loop(repetitions: int) -> int:
    """Look up in registers, with what lies in the nearest cache; how many products those are."""
    places, sums = 16 * np.arange(_FULL + 1, dtype=np.uint16), np.zeros(4 * WIDE, np.uint16)
    panel = on_lines(np.ones(_FULL * WIDE, np.uint8))
    _register_loop(repetitions, entries(), places.view(np.uint64), panel, sums)
    return repetitions * 2 * WIDE * 4 * _FULL


@kernel(allocates=False)
def _register_loop(repetitions, entries, places, panel, sums):
    for _ in range(repetitions):
        tile = _wide_tile()
        for k in range(0, _FULL, 3):
            tile = add_three_look_ups(tile, k, places, entries, panel, k * WIDE)
        add_tile(sums, 0, 2 * WIDE, tile)
