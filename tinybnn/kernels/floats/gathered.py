"""Products with a matrix of patches that is never stored.

A convolution is a matrix product: a row of one matrix is a patch of the image, the pixels that the
filter sees from one output pixel, and a column of the other is a filter. Stored in memory, the
matrix of patches (*im2col*) holds each pixel as often as the filter has taps, and building it takes
longer than a fast product with it. But the address of each of its elements is a sum of two numbers,
the start of the output pixel and the offset of the tap::

    patches[i, k] = source[places[i] + steps[k]]

So two short tables replace the matrix, and contain stride, padding, dilation and the width of an
image. Exchanging the tables transposes the matrix at no cost: the gradient in the weight is a
product with the transpose.

`product` multiplies by such a matrix. It is the inner loop of all float convolutions in training,
and most of their time is spent in it. Its sums, 6 rows × 4 vectors of 16 columns, fill 24 of the 32
registers of AVX-512. A step loads 4 vectors and 6 numbers for 24 multiply-adds, and a core can
start two in each cycle. A processor with 16 registers of 8 floats gets 6 rows × 1 vector.

Multiplication and addition are fused where the processor can do so (one rounding instead of two).
Sums in training need no fixed order; those of eval mode do, and have their own kernels in
`ordered`.

For speed alone: `convolution` has the plain references, and `tinybnn bench train --profile` shows
the share of convolutions in a step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tinybnn.kernels.machine.simd import (
    FLOATS,
    cpu_features,
    entry,
    inlined,
    load,
    load_like,
    subkernel,
    zero_floats,
    zeros,
)
from tinybnn.kernels.machine.tiles import (
    add_stored,
    fuse_lane_products,
    fuse_products,
    six,
    six_entries,
    store_tile,
    three_entries,
)

WIDE, MIDDLE, NARROW = 4 * FLOATS, 2 * FLOATS, FLOATS  # columns of a panel
TOGETHER, TOGETHER_CHANNELWISE = 6, 9  # rows in registers at a time


def panel_widths(columns: int) -> list[int]:
    """Return the widths of the panels into which the columns of a product are cut.

    For a step of 6 rows, a wide panel takes 12 cycles, a middle one 6, and a narrow one about 4,
    since its 6 sums are too few to hide the latency of an addition.
    """
    if "avx512f" not in cpu_features():
        return [NARROW] * -(-columns // NARROW)
    widths = [WIDE] * (columns // WIDE)
    rest = columns % WIDE
    if rest > MIDDLE + NARROW:
        return [*widths, WIDE]
    if rest > NARROW:
        widths.append(MIDDLE)
        rest -= MIDDLE
    return [*widths, NARROW] if rest > 0 else widths


# -------------------------------------------------------------------------------------- the product


class Patches(NamedTuple):
    """The matrix of patches: element (i, k) is ``source[base + places[i] + steps[k]]``.

    Attributes
    ----------
    source : (...,) float32
    base : int
    places, steps : (...,) int64
    """

    source: np.ndarray
    base: int
    places: np.ndarray
    steps: np.ndarray


class Panel(NamedTuple):
    """Some columns of the other matrix: one row of ``width`` floats per step, from ``at`` on.

    The sums of the first ``count`` columns are stored.

    Attributes
    ----------
    floats : (...,) float32
    at, width, count : int
    """

    floats: np.ndarray
    at: int
    width: int
    count: int


class Sums(NamedTuple):
    """Where the sums of row i begin, ``out[at + targets[i]]``, and whether they are added there.

    If they are added, all columns of the panel are.

    Attributes
    ----------
    out : (...,) float32
    at : int
    targets : (...,) int64
    adds : bool
    """

    out: np.ndarray
    at: int
    targets: np.ndarray
    adds: bool


@subkernel
def product(
    first: int, end: int, k0: int, k1: int, patches: Patches, panel: Panel, sums: Sums
) -> None:
    """Multiply rows first to end - 1 by one panel, over steps k0 to k1 - 1.

    For each row i and each column j < count::

        out[at + targets[i] + j] = sum over k0 <= k < k1 of
            patches[i, k] * floats[panel.at + (k - k0) * width + j]

    ``width`` is WIDE, MIDDLE or NARROW.
    """
    for i in range(first, end, TOGETHER):
        # The last block may have fewer rows: it repeats its last one.
        places = six_entries(patches.places, i, end - 1, patches.base)
        targets = six_entries(sums.targets, i, end - 1, sums.at)
        if panel.width == WIDE:
            _six_rows(zeros(WIDE), places, targets, k0, k1, patches, panel, sums)
        elif panel.width == MIDDLE:
            _six_rows(zeros(MIDDLE), places, targets, k0, k1, patches, panel, sums)
        else:
            _six_rows(zeros(NARROW), places, targets, k0, k1, patches, panel, sums)


@inlined
def _six_rows(zero, places, targets, k0, k1, patches, panel, sums):
    tile, q = six(zero), panel.at
    for k in range(k0, k1):
        weights = load_like(panel.floats, q, zero)
        tile = fuse_products(tile, places, patches.source, entry(patches.steps, k), weights)
        q += panel.width
    if sums.adds:  # all rows are read before any is written, so a row may be repeated
        tile = add_stored(tile, targets, sums.out)
    store_tile(tile, targets, sums.out, panel.count)


# ------------------------------------------------------------------------------- channel by channel


@subkernel
def channelwise_product(
    first: int, end: int, k0: int, k1: int, patches: Patches, panel: Panel, sums: Sums
) -> None:
    """Multiply by filters that see one channel each, as in depth-wise convolutions.

    For each row i and each channel j < count::

        out[at + targets[i] + j] = sum over k0 <= k < k1 of
            source[base + places[i] + steps[k] + j] * floats[panel.at + (k - k0) * width + j]

    9 rows are in registers at a time, as many as a 3×3 filter has taps: in the gradient in the
    weight these are the rows. If the number of channels is not a multiple of 16, the source and the
    panel hold 15 more floats than the sums need, and so does each row of ``out`` if sums are added.
    """
    for i in range(first, end, TOGETHER_CHANNELWISE):
        a, t = patches.places, sums.targets
        for channel in range(0, panel.count, FLOATS):
            base, to, last = patches.base + channel, sums.at + channel, end - 1
            places = (*six_entries(a, i, last, base), *three_entries(a, i + 6, last, base))
            targets = (*six_entries(t, i, last, to), *three_entries(t, i + 6, last, to))
            tile, q = (*six(zero_floats()), zero_floats(), zero_floats(), zero_floats()), panel.at
            for k in range(k0, k1):
                weights = load(panel.floats, q + channel)
                step = entry(patches.steps, k)
                tile = fuse_lane_products(tile, places, patches.source, step, weights)
                q += panel.width
            if sums.adds:
                tile = add_stored(tile, targets, sums.out)
            store_tile(tile, targets, sums.out, panel.count - channel)
