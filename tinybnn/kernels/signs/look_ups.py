"""Products of signs by look-ups: no exclusive or and no population count is executed.

Take 4 signs of a pixel as a nibble a, and 4 signs of a filter as a nibble b: popcount(a ^ b) is
what a table of 16 entries, that of a, has for b. A byte shuffle looks up 32 nibbles at once, and an
entry, at most 4, needs half a byte, so that one byte has the counts of two pixels::

    table of (a0, a1) at b:  popcount(a0 ^ b) | popcount(a1 ^ b) << 4

There are 256 such tables, 4 KB in all. Where the table of a pair lies, 16 * (a0 | a1 << 4), is
written down once for each nibble of an image, for each pixel and its neighbour (`images.pad`).

Three entries are added before a half of a byte could overflow (12 of 15); then the halves are taken
apart, and after 63 look-ups (252 of 255) bytes are added to 16-bit sums in memory. Three nibbles of
two pixels and 32 filters, 768 products, take 3 shuffles, 4 additions, 2 ands and a shift. Long rows
are cut: a part of a panel and the places that meet it stay in the nearest cache.

A panel has as many columns as two vectors have bytes, or one. It holds nibble 0 of each of its
filters, then nibble 1 of each; among the bytes of a vector, the filters of the first half have even
places and those of the second odd ones, so that widening puts them in order.

T-MAC (Wei et al. 2024, arXiv:2407.00088) looks up sums of activations by shuffles in the same way.
`tinybnn bench kernels` shows what the method reaches.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba.core import types

from tinybnn.kernels.machine.shuffles import (
    BYTES,
    add_look_up,
    add_three_look_ups,
    add_widened,
    load_widened,
    on_stack,
    widened_sum,
    zero_bytes,
)
from tinybnn.kernels.machine.simd import compiles, inlined, kernel, subkernel
from tinybnn.kernels.machine.windows import Windows
from tinybnn.kernels.signs.results import finish
from tinybnn.kernels.signs.tables import LookUps, Tables

WIDE, NARROW = 2 * BYTES, BYTES  # columns of a panel
MOST_TERMS = 2**15 - 1  # signs whose disagreements a sum holds, twice of ternary weights
LEAST_TERMS = 256  # of fewer, to find the tables of a pixel costs more than to count
_FULL = 63  # look-ups after which a byte is full
_NEAR = 4 * _FULL  # look-ups whose part of a panel (16 KB) stays in the nearest cache
_PAIRS = 32  # pairs of pixels that pass through all panels before the next ones


# ----------------------------------------------------------------------------------------- layout


@functools.cache
def entries():
    """All tables, (4096,) uint8: that of the pair a begins at 16 a."""
    pairs, nibbles = np.arange(256)[:, None], np.arange(16)
    first, second = (
        np.bitwise_count((pairs & 15) ^ nibbles),
        np.bitwise_count((pairs >> 4) ^ nibbles),
    )
    return (first | second << 4).astype(np.uint8).reshape(-1)


def segments(starts, count):
    """`LookUps.segments` and `.near` of taps of ``count`` nibbles that begin at ``starts``."""
    runs = []
    for start in starts:
        if runs and sum(runs[-1]) == start:  # side by side
            runs[-1][1] += count
        else:
            runs.append([start, count])
    table, near, done = [], [0], 0
    for start, length in runs:
        while length:
            part = min(length, _FULL - done % _FULL)
            start, length, done = start + part, length - part, done + part
            table.append((start - part, part, done % _FULL == 0))
            if done % _NEAR == 0:
                near.append(len(table))
    table[-1] = (*table[-1][:2], True)
    if near[-1] != len(table):
        near.append(len(table))
    return np.array(table, np.int64), np.array(near)


def nibbles(words, count):
    """(O, taps, W) words -> (O, taps * count): the first nibbles of each tap."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    filters, taps, length = words.shape
    both = np.stack([octets & 15, octets >> 4], -1).reshape(filters, taps, 16 * length)
    return both[:, :, :count].reshape(filters, taps * count)


def panel_nibbles(panels):
    """(P, width, K) nibbles of filters -> those of P panels."""
    count, width, length = panels.shape
    halves = panels.reshape(count, width // BYTES, 2, BYTES // 2, length)
    return np.ascontiguousarray(halves.transpose(0, 4, 1, 3, 2)).reshape(-1)


def nibbles_of_panel(panel, length):
    """The nibbles of one panel -> (K, width), the reverse of `panel_nibbles`."""
    halves = panel.reshape(length, -1, BYTES // 2, 2).swapaxes(2, 3)
    return halves.reshape(length, -1)


# ---------------------------------------------------------------------------------------- kernels

_place_of, _pixel_of = on_stack(np.int64, _PAIRS), on_stack(np.int64, _PAIRS)
_sums_of = on_stack(np.uint16, _PAIRS * 2 * WIDE)


@subkernel
def blocks(first, end, panel, panel_end, words, base, masks, arguments, target):
    """What `counting.blocks` does. ``masks`` are empty."""
    tables = Tables(*arguments)
    places, pairs, sums = words.view(np.uint16), (_place_of(), _pixel_of()), _sums_of()
    panels = (tables.group_columns + NARROW) // WIDE
    start = first
    while start < end:
        count, stop = _find_pairs(start, end, base, pairs, tables)
        for p in range(panel, panel_end):
            group, column = p // panels, p % panels * WIDE
            width = min(WIDE, tables.group_columns - column)
            _count(count, group, column, width, places, pairs[0], sums, tables)
            _finish(count, stop, group, column, width, pairs[1], sums, tables, target)
        start = stop


@inlined
def _find_pairs(i, end, base, pairs, tables):
    """Find some pairs from pixel i on: their places and first pixels; their number, the next i."""
    look_ups, (places, firsts) = LookUps(*tables.look_ups), pairs
    of_image, out_width = len(tables.pixels), Windows(*tables.windows).out_width
    count = 0
    while i < end and count < _PAIRS:
        image, p = i // of_image, i % of_image
        at = base + image * tables.image_stride + look_ups.image_words
        places[count], firsts[count] = 4 * at + 16 * tables.pixels[p], i
        count += 1
        is_beside = of_image == 1 or (p + 1) % out_width > 0
        i += 2 if is_beside and i + 1 < end else 1
    return count, i


@subkernel
def _count(pairs, group, column, width, places, firsts, sums, tables):
    """Disagreements of some pairs of pixels with a panel: (pairs, 2, width) ``sums``."""
    look_ups, zero = LookUps(*tables.look_ups), zero_bytes()
    shift = 16 * group * tables.group_stride
    for i in range(pairs * 2 * width):
        sums[i] = 0
    at = (group * tables.group_columns + column) * look_ups.count
    for part in range(len(look_ups.near) - 1):
        begin, end = look_ups.near[part], look_ups.near[part + 1]
        after = at
        for i in range(0, pairs - pairs % 2, 2):
            two, to = (firsts[i] + shift, firsts[i + 1] + shift), i * 2 * width
            if width == WIDE:
                tile = zero, zero, zero, zero, zero, zero, zero, zero
                after = _look_up(tile, two, begin, end, places, at, sums, to, tables)
            else:
                tile = zero, zero, zero, zero
                after = _look_up(tile, two, begin, end, places, at, sums, to, tables)
        if pairs % 2:
            one, to = (firsts[pairs - 1] + shift,), (pairs - 1) * 2 * width
            tile = zero, zero, zero, zero
            if width == WIDE:
                after = _look_up(tile, one, begin, end, places, at, sums, to, tables)
            else:  # twice, to have one kind of code less: what comes behind the sums is not read
                two = one[0], one[0]
                after = _look_up(tile, two, begin, end, places, at, sums, to, tables)
        at = after


@inlined
def _look_up(zero, pairs, begin, end, places, at, sums, to, tables):
    """Some segments, from nibble ``at`` of the panels on; the nibble behind them."""
    look_ups, tile, width = LookUps(*tables.look_ups), zero, len(zero) // len(pairs) // 2 * BYTES
    entries, panels = look_ups.entries, tables.panels
    for s in range(begin, end):
        k, count = look_ups.segments[s, 0], look_ups.segments[s, 1]
        last = k + count
        while k + 3 <= last:
            tile = add_three_look_ups(tile, moved(pairs, k), places, entries, panels, at)
            k, at = k + 3, at + 3 * width
        while k < last:
            tile = add_look_up(tile, moved(pairs, k), places, entries, panels, at)
            k, at = k + 1, at + width
        if look_ups.segments[s, 2]:
            add_tile(sums, to, tile)
            tile = zero
    return at


def register_loop(repetitions):
    """Look up in registers, with what lies in the nearest cache; how many products those are."""
    offsets = 16 * np.arange(2 * _FULL, dtype=np.uint16)
    panel, sums = np.ones(_FULL * WIDE, np.uint8), np.zeros(4 * WIDE, np.uint16)
    _register_loop(repetitions, entries(), offsets, panel, sums)
    return repetitions * 4 * WIDE * 4 * _FULL


@kernel(allocates=False)
def _register_loop(repetitions, entries, offsets, panel, sums):
    zero = zero_bytes()
    for _ in range(repetitions):
        tile = zero, zero, zero, zero, zero, zero, zero, zero
        for k in range(0, _FULL, 3):
            pairs = k, _FULL + k
            tile = add_three_look_ups(tile, pairs, offsets, entries, panel, k * WIDE)
        add_tile(sums, 0, tile)


def moved(places, step):
    """Each place, so much further on."""
    return tuple([place + step for place in places])


@compiles(moved)
def _moved(places, step):
    def generate(context, builder, signature, values):
        found = [builder.extract_value(values[0], i) for i in range(len(places))]
        found = [builder.add(place, values[1]) for place in found]
        return context.make_tuple(builder, signature.return_type, found)

    return places(places, types.int64), generate


def add_tile(sums, to, tile):
    """Add the vectors of a tile to sums, one after the other."""
    for i, row in enumerate(tile):
        add_widened(sums, to + i * BYTES, row)


@compiles(add_tile)
def _add_tile(sums, to, tile):
    _, add_row = widened_sum(sums, types.intp, tile.dtype)

    def generate(context, builder, signature, values):
        for i in range(len(tile)):
            place = builder.add(values[1], ir.Constant(ir.IntType(64), i * BYTES))
            row = builder.extract_value(values[2], i)
            add_row(context, builder, signature, (values[0], place, row))
        return context.get_dummy_value()

    return types.void(sums, types.intp, tile), generate


@subkernel
def _finish(pairs, stop, group, column, width, firsts, sums, tables, target):
    """Sums or bits of the pixels of some pairs, of which the last ends at pixel ``stop``."""
    origin, out, bits, are_floats = target
    look_ups = LookUps(*tables.look_ups)
    results = tables.constants, tables.flips, tables.filters, out, bits, are_floats
    channel, columns = group * tables.group_filters + column, group * tables.group_columns + column
    for i in range(pairs):
        end = firsts[i + 1] if i + 1 < pairs else stop
        p = firsts[i] % len(tables.pixels)
        for j in range(end - firsts[i]):
            r = tables.rows[p + j if len(tables.pixels) > 1 else 0]
            row, of_pixel = firsts[i] + j - origin, (2 * i + j) * width
            for c in range(0, min(width, tables.group_filters - column), 32):
                n = load_widened(sums, of_pixel + c)
                place = channel + c, tables.group_filters - column - c
                if look_ups.is_twofold:
                    finish(n, n, columns + c, r, row, place, results)
                else:
                    finish(n, n + n, columns + c, r, row, place, results)
