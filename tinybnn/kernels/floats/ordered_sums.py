"""Inner loop of ordered sums: float weights in panels, and tables of their operands."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import aligned
from tinybnn.kernels.machine.simd import (
    FLOATS,
    inlined,
    kernel,
    load,
    load_like,
    subkernel,
    zero_floats,
    zeros,
)
from tinybnn.kernels.machine.tiles import add_lane_products, add_products, six, store_tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Filters are laid out in panels of 64 or 16: summation step 0 of each filter of the panel, then
# step 1 of each, and so on, so that one load gives the weights of 16 filters.
WIDE, NARROW = 4 * FLOATS, FLOATS
TOGETHER = 6  # output pixels (or rows of signs) in registers at a time
_PART = 40 * TOGETHER  # pixels multiplied by all panels before the next ones: they stay in cache


class Tables(NamedTuple):
    """Laid-out weights and the addresses of the floats they multiply, as `sums` reads them.

    An output pixel sees the floats at ``first float of the pixel + taps``, in the order of
    summation. So only the tables know stride, dilation and image width.

    Attributes
    ----------
    panels : (...,) float32
        The weights of all panels, one panel after the other.
    table : (P, 5) int64
        For each panel: its start in ``panels``, its width, the first input channel, the first
        output channel, the number of output channels.
    taps : (L,) int64
        Offsets of the floats under a filter from the pixel's first float; L is kh * kw * C /
        groups.
    pixels : (OH * OW,) int64
        Offset of the first float that an output pixel sees from the start of the image.
    image_stride : int
        Floats of an image with its padding.
    outputs : int
        O.
    depthwise : bool
        Whether each channel has its own filter (groups = C = O): then lane j of a panel sees
        channel j; otherwise all lanes see the same channel.
    """

    panels: np.ndarray
    table: np.ndarray
    taps: np.ndarray
    pixels: np.ndarray
    image_stride: int
    outputs: int
    depthwise: bool


# --------------------------------------------------------------------------------- laid-out weights


@functools.lru_cache(maxsize=128)
def panels_of(
    filters: int, groups: int, group_channels: int, length: int, widest: int
) -> tuple[NDArray[np.int64], int]:
    """Return the table of panels that `sums` reads, (P, 5) int64, and the floats of all panels."""
    group_filters = filters // groups
    if group_channels == group_filters == 1:  # 16 neighbouring channels, each with its own filter
        firsts = np.arange(0, filters, NARROW)
        spans = [(first, first, min(NARROW, filters - first), NARROW) for first in firsts]
    else:
        spans = []
        for group in range(groups):
            first, end = group * group_filters, (group + 1) * group_filters
            while first < end:
                # One wide panel costs less than four narrow ones, but not less than three.
                width = widest if end - first > 3 * NARROW else NARROW
                count = min(width, end - first)
                spans.append((group * group_channels, first, count, width))
                first += count
    starts = np.cumsum([0] + [length * width for *_, width in spans])
    table = [
        (start, width, channel, first, count)
        for start, (channel, first, count, width) in zip(starts[:-1], spans, strict=True)
    ]
    return np.array(table, np.int64).reshape(-1, 5), int(starts[-1])


def laid_out(
    weight: NDArray[np.float32], places: NDArray[np.int64], table: NDArray[np.int64], floats: int
) -> NDArray[np.float32]:
    """Lay out filters in ``floats`` floats of panels; step k is element places[k] of each.

    weight : (O, ...) float32 -> (floats,) float32
    """
    panels = aligned(np.zeros(floats, np.float32))
    _lay_out(for_kernel(weight).reshape(-1), places, table, panels)
    return panels


@kernel(allocates=False)
def _lay_out(weight, places, table, panels):
    """Copy filters, flat, into panels; step k is element places[k] of each.

    The unused columns of a panel stay 0.
    """
    length = len(places)
    for p in range(len(table)):
        q, width, _, first, count = table[p]
        for k in range(length):
            for j in range(count):
                panels[q + j] = weight[(first + j) * length + places[k]]
            q += width


# -------------------------------------------------------------------------------------- inner loops

# Multiplication and addition stay two instructions, with two execution units each, and an addition
# takes a few cycles before the next one of the same sum can start. 6 pixels × 4 vectors of filters
# are 24 independent sums, and the loads of a step, 4 of weights and 6 of pixels, serve 48
# instructions.


@subkernel
def sums(
    first: int,
    end: int,
    source: NDArray[np.float32],
    base: int,
    out: NDArray[np.float32],
    to: int,
    tables: Tables,
) -> None:
    """Compute the sums of output pixels first to end - 1 for all filters.

    Parameters
    ----------
    first, end : int
        Output pixels, numbered across all images.
    source : (...,) float32
        Image n begins at ``source[base + n * image_stride]``.
    base : int
        Negative if ``source`` does not hold the first images.
    out : (...,) float32
        Pixel ``first`` is written to ``out[to]`` and following, one float per filter, then the next
        pixels.
    to : int
    tables : Tables
    """
    panels, table, taps, pixels, image_stride, outputs, depthwise = tables
    per_image = len(pixels)
    for start in range(first, end, _PART):
        stop = min(start + _PART, end)
        for p in range(len(table)):
            q, width, channel, filter_, count = table[p]
            place = base + channel, image_stride, pixels
            image, pixel = start // per_image, start % per_image
            for i in range(start, stop, TOGETHER):
                # The last block may have fewer pixels: it repeats its last one.
                more = stop - 1 - i
                a0, image, pixel = _where(image, pixel, more > 0, place)
                a1, image, pixel = _where(image, pixel, more > 1, place)
                a2, image, pixel = _where(image, pixel, more > 2, place)
                a3, image, pixel = _where(image, pixel, more > 3, place)
                a4, image, pixel = _where(image, pixel, more > 4, place)
                a5, image, pixel = _where(image, pixel, more > 5, place)
                places = a0, a1, a2, a3, a4, a5
                t0, last = to + (i - first) * outputs + filter_, min(more, 5)
                targets = (
                    t0, t0 + min(last, 1) * outputs, t0 + min(last, 2) * outputs,
                    t0 + min(last, 3) * outputs, t0 + min(last, 4) * outputs, t0 + last * outputs,
                )  # fmt: skip
                if depthwise:
                    tile = _channelwise(six(zero_floats()), places, source, taps, panels, q)
                    store_tile(tile, targets, out, count)
                elif width == NARROW and more == 0:
                    tile = _dense((zero_floats(),), (a0,), source, taps, panels, q)
                    store_tile(tile, (t0,), out, count)
                elif width == NARROW:
                    tile = _dense(six(zero_floats()), places, source, taps, panels, q)
                    store_tile(tile, targets, out, count)
                elif more == 0:
                    tile = _dense((zeros(WIDE),), (a0,), source, taps, panels, q)
                    store_tile(tile, (t0,), out, count)
                else:
                    tile = _dense(six(zeros(WIDE)), places, source, taps, panels, q)
                    store_tile(tile, targets, out, count)


@inlined
def _where(image, pixel, more, place):
    """Return an output pixel's first float, and the next pixel if there is one more."""
    start, image_stride, pixels = place
    address = start + image * image_stride + pixels[pixel]
    is_last = pixel + 1 == len(pixels)
    if not more:
        return address, image, pixel
    return address, image + is_last, 0 if is_last else pixel + 1


@inlined
def _dense(tile, places, source, taps, panels, q):
    """Compute the sums of some pixels with the filters of a panel."""
    for j in range(len(taps)):
        tile = add_products(tile, places, source, taps[j], load_like(panels, q, tile[0]))
        q += len(tile[0])
    return tile


@inlined
def _channelwise(tile, places, source, taps, panels, q):
    """Compute the sums of some pixels for 16 channels with one filter each."""
    for j in range(len(taps)):
        tile = add_lane_products(tile, places, source, taps[j], load(panels, q))
        q += NARROW
    return tile
