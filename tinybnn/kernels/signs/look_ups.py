"""Sign products by table look-ups: no exclusive or and no population count is executed.

Take 4 signs of a pixel as a nibble a, and 4 signs of a filter as a nibble b. For each a, store
popcount(a ^ b) as entry b of a table with 16 entries. A byte shuffle looks up 32 nibbles b at once.
An entry is at most 4 and fits half a byte, so one byte holds the counts of two pixels::

    table of (a0, a1) at b:  popcount(a0 ^ b) | popcount(a1 ^ b) << 4

There are 256 such tables, 4 KB in all. The address of a pair's table, 16 * (a0 | a1 << 4), is
computed once for each nibble of an image, for each pixel and its neighbour (`images.pad`).

The entries of three look-ups can be added without overflow of a nibble (3 * 4 = 12, at most 15).
Their sum is added to one byte counter and, shifted right by a nibble, to a second one. The counters
may wrap around (modulo 256), but no information is lost: `shuffles.add_tile` recovers the counts of
both pixels from them after up to 63 look-ups (63 * 4 = 252, at most 255). Three nibbles of two
pixels and 32 filters, 768 products, thus take 3 shuffles, 4 additions and a shift. The nibbles of a
filter are cut into parts of up to 63, so that a part of a panel and the table addresses that it is
combined with stay in the first-level cache.

A panel holds 128 filters, its columns; the last one of a group may have fewer. It stores nibble 0
of each of its filters, then nibble 1 of each. Within a vector, the filters of the first half lie in
the even bytes and those of the second half in the odd ones, so that widening the bytes to 16 bits
restores their order.

Two variants were tried and were not faster. Tiles of two pairs and two vectors need as many loads
and too many registers. Entries of 0 to 2 (half the disagreements, the parity being known from the
nibbles) allow seven additions, but the loads are the bottleneck, not the additions, and the
parities of each pixel must be counted as well. A third, carry-save adders over bits (Harley and
Seal), was not tried: it needs more instructions, even with AVX-512's three-operand logic.

T-MAC (Wei et al. 2024, arXiv:2407.00088) looks up sums of activations by shuffles in the same way.
This method exists for speed alone; `tinybnn bench kernels` shows the throughput of both methods.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.kernels.machine.memory import aligned, empty
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
PANELS = np.uint8  # their dtype
MOST_TERMS = 2**15 - 1  # signs per sum; uint16 holds their disagreements, for ternary ones doubled
LEAST_TERMS = 128  # with fewer signs, computing a pixel's table addresses costs more than it saves
_FULL = 63  # look-ups after which a byte counter is full
_PAIRS = 32  # pairs of pixels multiplied by all panels before the next pairs are taken


# ----------------------------------------------------------------------------------------- layout


@functools.cache
def entries() -> NDArray[np.uint8]:
    """Build all tables, (4096,) uint8: that of the pair a = a0 | a1 << 4 begins at index 16 a."""
    pairs, nibbles = np.arange(256)[:, None], np.arange(16)
    first, second = (
        np.bitwise_count((pairs & 15) ^ nibbles),
        np.bitwise_count((pairs >> 4) ^ nibbles),
    )
    return aligned((first | second << 4).astype(np.uint8).reshape(-1))


def segments(starts: Sequence[int], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute `LookUps.segments` and `LookUps.parts`.

    ``starts`` has the offset of each tap, in nibbles from the pixel's address, and ``count`` is the
    number of nibbles in a tap.
    """
    runs, total = [], len(starts) * count
    for start in starts:
        if runs and sum(runs[-1]) == start:  # contiguous
            runs[-1][1] += count
        else:
            runs.append([start, count])
    size = -(-total // -(-total // _FULL))  # parts of about the same length, which is
    size += -size % 3  # rounded up to a multiple of three
    table, parts, done = [], [0], 0
    for start, length in runs:
        while length:
            step = min(length, size - done % size)
            table += [start, step]
            start, length, done = start + step, length - step, done + step
            if done % size == 0 or done == total:
                parts.append(len(table))
    return np.array(table), np.array(parts)


def nibbles(words: Words) -> NDArray[np.uint8]:
    """Split (N, W) words into nibbles, (N, 16 * W) uint8."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    return np.stack([octets & 15, octets >> 4], -1).reshape(len(words), 16 * words.shape[1])


def panel_nibbles(panels: Words, count: int) -> NDArray[np.uint8]:
    """Lay out the first ``count`` nibbles of each tap as P panels, flat uint8.

    panels : (P, width, taps, W) uint64; the result has P * taps * count * width bytes
    """
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
    """Read the nibbles of one panel back as (K, width); the inverse of `panel_nibbles`."""
    halves = panel.reshape(length, -1, BYTES // 2, 2).swapaxes(2, 3)
    return halves.reshape(length, -1)


# ---------------------------------------------------------------------------------------- kernels

_place_of, _pixel_of = on_stack(np.int64, _PAIRS), on_stack(np.int64, _PAIRS + 1)
_ZEROS = _PAIRS * 2 * WIDE  # index of zeros in the memory for sums
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
    """Multiply output pixels by panels, as `counting.blocks`; ``masks`` are empty."""
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
            columns = column, channel, min(left, width), width
            is_twofold = look_ups.is_twofold
            _finish(pairs, columns, origin, pixels, sums, is_twofold, tables.rows, results)
        start = entry(pixels, pairs)


@inlined
def _find_pairs(i, end, base, places, pixels, images):
    """Collect pairs of pixels from pixel i on; return their number.

    The address of each pair's tables goes to ``places``, and its first pixel to ``pixels``, which
    ends with the pixel that follows the last pair. A pixel without a right neighbour in its row of
    the output makes a pair without a second pixel.
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
    """Add up the disagreements of pairs of pixels with a panel: ``sums`` (pairs, 2, width)."""
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
def _finish(pairs, columns, origin, pixels, sums, is_twofold, rows, results):
    """Write the sums or bits of the pixels of some pairs and the filters of a panel."""
    column, channel, count, width = columns
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


# --------------------------------------------------------------------------------- peak throughput


def register_loop(repetitions: int) -> int:
    """Run look-ups in tables that stay in the first-level cache; return the sign products done."""
    places, sums = 16 * np.arange(_FULL + 1, dtype=np.uint16), np.zeros(4 * WIDE, np.uint16)
    panel = aligned(np.ones(_FULL * WIDE, np.uint8))
    _register_loop(repetitions, entries(), places.view(np.uint64), panel, sums)
    return repetitions * 2 * WIDE * 4 * _FULL


@kernel(allocates=False)
def _register_loop(repetitions, entries, places, panel, sums):
    for _ in range(repetitions):
        tile = _wide_tile()
        for k in range(0, _FULL, 3):
            tile = add_three_look_ups(tile, k, places, entries, panel, k * WIDE)
        add_tile(sums, 0, 2 * WIDE, tile)
