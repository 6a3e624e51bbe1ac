"""Gradient of a binary convolution or linear layer in its input.

It is a product of floats with signs (`sign_gradients`), of the gradient of the output with the
signs of the weight. The place of an output pixel's taps in the input decides which gradients a sum
has: an input pixel collects from all the output pixels whose taps fall on it.

Each gradient is prepared once, as tables (`lookup`) or as a list (`masked`), and then serves all
the taps, for a band of rows at a time that fits the cache.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn.kernels.floats import convolution
from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.checks import out_array
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import (
    FLOATS,
    clear,
    cpu_features,
    inlined,
    kernel,
    splat_like,
    zeros,
)
from tinybnn.kernels.machine.tiles import store_tile
from tinybnn.kernels.machine.windows import Windows, windows
from tinybnn.kernels.signs.bits import unpack, unpack_reference, words_for
from tinybnn.kernels.training import lookup
from tinybnn.kernels.training.masked import add_listed, list_nonzero
from tinybnn.kernels.training.sign_gradients import (
    SPEED,
    Geometry,
    as_image,
    choose_method,
    geometry_of,
    operands,
    with_zeros,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import FloatArray, Words

# Filters whose tables are in use at a time where a sum has several taps: they decide its order.
_CHUNK = 32 if "avx512f" in cpu_features() else lookup.CHUNK
_BAND_BYTES = 1 << 20  # sums or lists that are kept at a time, as far as possible


def conv2d_input_gradient(
    grad: ArrayLike,
    weight: ArrayLike,
    geometry: Geometry,
    *,
    method: str | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Gradient of a binary convolution in its input: floats times the signs of the weight.

    With the input pixel (y, x) that the tap (ky, kx) of output pixel (oy, ox) falls on,
    y = oy * stride - padding + ky * dilation (x likewise),

        out[n, y, x, c] = sum over o, ky, kx of grad[n, oy, ox, o] * sign(weight[o, ky, kx, c]).

    What the padding holds is constant and does not matter here.

    Parameters
    ----------
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    weight : (O, kh, kw, words_for(C / groups)) uint64
    geometry : Geometry
        Of `geometry_of`.
    method : "lookup", "masked" or "float", optional
        By default what suits the CPU and the share of zeros in ``grad``.
    out : (N, H, W, C) float32, optional
        C-contiguous, to be written to.

    Returns
    -------
    (N, H, W, C) float32

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or the CPU cannot do ``method``.
    """
    name, (_, kh, kw, per_group) = "conv2d_input_gradient", geometry.weight
    taps, shape = kh * kw, (*np.shape(grad)[:1], *geometry.output)
    grad, weight = operands(
        name, grad=(grad, np.float32, shape), weight=(weight, np.uint64, geometry.weight_words)
    )
    panels = taps * -(-per_group // 64)
    method = choose_method(name, method, grad, "input", per_group, taps * per_group, panels)
    out = out_array(name, out, (len(grad), *geometry.image))
    if out.size == 0 or grad.size == 0:
        out[...] = 0
        return out
    if method == "float":
        signs, size = unpack(weight, per_group).transpose(0, 3, 1, 2), geometry.image[:2]
        return convolution.conv2d_input(grad, signs, size, *geometry.options, out=out)
    by = _by_tables if method == "lookup" else _by_masks
    for group in range(geometry.groups):
        by(geometry, group, grad, weight, out)
    return out


def conv2d_input_gradient_reference(
    grad: FloatArray, weight: Words, geometry: Geometry
) -> FloatArray:
    """What :func:`conv2d_input_gradient` computes, in plain NumPy, in the dtype of ``grad``."""
    of = geometry.windows
    signs = unpack_reference(weight, geometry.weight[3], grad.dtype)  # (O, kh, kw, C / groups)
    padded = np.zeros((len(grad), *of.padded_size, geometry.image[2]), grad.dtype)
    for ky, kx, seen in of.views(padded):  # seen : (N, OH, OW, C), a view
        for o, c in geometry.group_slices():
            # Each output pixel is spread over the pixels its taps fall on.
            seen[..., c] += grad[..., o] @ signs[o, ky, kx]
    return padded[:, of.top : of.top + of.height, of.left : of.left + of.width]


def linear_input_gradient(
    grad: ArrayLike,
    weight: ArrayLike,
    features: int,
    *,
    method: str | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Gradient of a binary linear layer in its input: ``grad @ sign(weight)``.

    Parameters
    ----------
    grad : (N, O) float32
    weight : (O, words_for(features)) uint64
    features : int
        K, the inputs of the layer.
    method, out
        As in `conv2d_input_gradient`; ``out`` is (N, K) float32.

    Returns
    -------
    (N, K) float32

    Raises
    ------
    ValueError
        As `conv2d_input_gradient`.
    """
    name = "linear_input_gradient"
    grad, weight = as_image(name, "grad", grad), as_image(name, "weight", weight)
    out = None if out is None else as_image(name, "out", out)
    geometry = geometry_of(features, len(weight), (1, 1), (1, 1))
    return conv2d_input_gradient(grad, weight, geometry, method=method, out=out)[:, 0, 0]


def _has_lone_pixels(of):
    """Whether each pixel of the input belongs to one of the output, the same."""
    return of.taps == 1 and of.stride == (1, 1) and of.padding == (0, 0)


# ------------------------------------------------------------------------------------ lookup tables


class _Blocks(NamedTuple):
    """The numbers that the kernel needs.

    The images are cut into bands of rows, of which the first bands of all images come first, then
    the second ones. 16 bands lie side by side, a *block*: as all of them have the same taps at a
    pixel, the tables of its gradients serve all taps.
    """

    windows: Windows
    images: int
    channels: int  # of all groups
    first_channel: int
    group_channels: int
    lanes: int  # channels of a group, filled up to whole panels
    filters: int
    first_filter: int
    group_filters: int
    band: int  # input rows, a multiple of the stride
    bands: int  # of all images
    chunk: int  # filters whose tables are in use at a time


@functools.lru_cache(maxsize=256)  # a layer in training needs its plan at each step
def _plan_tables(geometry, images, group, tasks, most_bytes):
    """For one group of a convolution, for so many images: the numbers, and a `lookup.Turning`."""
    of, (filters, kh, kw, per_group) = geometry.windows, geometry.weight
    if _has_lone_pixels(of):
        images, of = images * of.height * of.width, windows("", (1, 1), (1, 1))
    words, group_filters = words_for(per_group), filters // geometry.groups
    lanes, stride = -(-per_group // lookup.PANEL) * lookup.PANEL, of.row_stride
    # The sums of a block fit the cache, and small batches are cut so that all tasks have full ones.
    fitting = most_bytes // (of.width * lanes * FLOATS * 4), of.height * images // (FLOATS * tasks)
    band = max(1, min(of.height, *fitting) // stride) * stride
    g = _Blocks(
        of, images, geometry.image[2], group * per_group, per_group, lanes, filters,
        group * group_filters, group_filters, band, -(-of.height // band) * images,
        _CHUNK if of.taps > 1 else lookup.CHUNK,
    )  # fmt: skip
    starts = (np.arange(group_filters) + g.first_filter) * (kh * kw * words)
    return g, lookup.turning(starts, np.arange(kh * kw) * words, per_group)


def _by_tables(geometry, group, grad, weight, out):
    """One group. grad : (N, OH, OW, O), out : (N, H, W, C), of which C / groups are written."""
    height, width, channels = geometry.image
    products = len(grad) * height * width * channels * math.prod(geometry.weight[:3])
    tasks = threads.tasks_for(products / geometry.groups**2 / SPEED)
    g, signs = _plan_tables(geometry, len(grad), group, tasks, _BAND_BYTES)
    if g.group_filters % 4:  # four gradients are loaded at a time
        of_group = grad[..., g.first_filter : g.first_filter + g.group_filters]
        grad = with_zeros(of_group, 4)
        g = g._replace(first_filter=0, filters=grad.shape[3])
    blocks = -(-g.bands // FLOATS)
    tasks = min(tasks, blocks)
    numbers = lookup.turned(signs, weight.reshape(-1), tasks)
    vectors = empty(tasks * lookup.CHUNK * FLOATS, np.float32)
    tables = empty(tasks * lookup.STEPS * lookup.TABLE, np.float32)
    sums = empty(tasks * g.band * g.windows.width * g.lanes * FLOATS, np.float32)
    places = np.empty(tasks * FLOATS, np.int64)
    scratch, shares = (vectors, tables, sums, places), parallel.shares(blocks, tasks)
    arrays = grad.reshape(-1), numbers, scratch, out.reshape(-1)
    parallel.share_out(_input_by_tables, shares, *arrays, g)


@kernel(allocates=False)
def _input_by_tables(first, end, slot, grad, numbers, scratch, out, g):
    """Blocks first to end - 1.

    The sums of an input pixel run over chunks of filters, and for each chunk over the taps. So taps
    come in their order if the gradients are visited from the last one to the first.
    """
    of, (vectors, tables, sums, places) = g.windows, scratch
    vector, table = slot * lookup.CHUNK * FLOATS, slot * lookup.STEPS * lookup.TABLE
    taps = of.kernel_height * of.kernel_width
    of_pixel, of_tap = g.lanes * FLOATS, g.lanes * lookup.STEPS // 4  # sums, numbers
    start, lane = slot * g.band * of.width * of_pixel, slot * FLOATS
    # Rows of the gradient whose taps fall on a band, counted from the band.
    reach = (of.kernel_height - 1) * of.row_dilation - of.top
    row_end, row_first = (g.band - 1 + of.top) // of.row_stride + 1, -(reach // of.row_stride)
    for block in range(first, end):
        clear(sums, start, g.band * of.width * of_pixel)
        for chunk in range(0, g.group_filters, g.chunk):
            count = min(g.chunk, g.group_filters - chunk)
            signs = chunk // lookup.CHUNK * taps * of_tap
            signs += chunk % lookup.CHUNK // 4 * (lookup.PANEL // 4)
            for row in range(row_end - 1, row_first - 1, -1):
                if not _gradients_of_row(block, row, places, lane, g):
                    continue
                for column in range(of.out_width - 1, -1, -1):
                    offset = column * g.filters + g.first_filter + chunk
                    lookup.side_by_side(grad, places, lane, offset, count, vectors, vector)
                    steps = lookup.make_tables(
                        vectors, vector, np.int64(FLOATS), count, tables, table
                    )
                    for tap in range(taps):
                        ky, kx = tap // of.kernel_width, tap % of.kernel_width
                        y = row * of.row_stride - of.top + ky * of.row_dilation
                        x = column * of.column_stride - of.left + kx * of.column_dilation
                        if 0 <= y < g.band and 0 <= x < of.width:
                            lookup.add_looked_up(
                                tables, table, steps, numbers, signs + tap * of_tap,
                                sums, start + (y * of.width + x) * of_pixel, g.group_channels,
                            )  # fmt: skip
        for y in range(g.band):
            _inputs_of_row(block, y, places, lane, g)
            for x in range(of.width):
                lookup.one_after_the_other(
                    sums, start + (y * of.width + x) * of_pixel, g.group_channels,
                    out, places, lane, x * g.channels + g.first_channel,
                )  # fmt: skip


@inlined
def _gradients_of_row(block, row, places, at, g):
    """Where a row of the gradient, counted from a band, begins in each image; -1 if there is none.

    Returns
    -------
    Whether a band has one.
    """
    of, found = g.windows, False
    image, rows = block * FLOATS % g.images, g.band // of.row_stride
    y = block * FLOATS // g.images * rows + row
    for i in range(FLOATS):
        is_there = block * FLOATS + i < g.bands and 0 <= y < of.out_height
        pixel = (image * of.out_height + y) * of.out_width
        places[at + i] = pixel * g.filters if is_there else -1
        found, image = found or is_there, image + 1
        if image == g.images:
            image, y = 0, y + rows
    return found


@inlined
def _inputs_of_row(block, row, places, at, g):
    """Where a row of a band begins in each image; -1 if there is none."""
    of, image = g.windows, block * FLOATS % g.images
    y = block * FLOATS // g.images * g.band + row
    for i in range(FLOATS):
        is_there = block * FLOATS + i < g.bands and y < of.height
        places[at + i] = (image * of.height + y) * of.width * g.channels if is_there else -1
        image += 1
        if image == g.images:
            image, y = 0, y + g.band


# --------------------------------------------------------------------------------- masked additions


class _Bands(NamedTuple):
    """The numbers that the kernel needs.

    The image is worked on in bands of rows. For each a part of the gradient is laid out in *cells*,
    one an output pixel, in rows of ``columns``: the list of a pixel, empty outside the gradient.

    With a stride, the taps that fall on an input row y are those whose ky * dilation has the same
    remainder by the stride as y + padding: a *phase*. Rows and columns of the same phases see the
    same taps, at the same distances.
    """

    windows: Windows
    channels: int  # of all groups
    first_channel: int
    group_channels: int
    filters: int
    first_filter: int
    group_filters: int
    band: int  # input rows
    bands: int  # in an image
    rows_before: int  # gradient rows that reach down into an input row, but the last one
    columns_before: int
    columns: int
    cells: int  # at most, of a band


class _Plan(NamedTuple):
    """All that does not depend on what the arrays hold.

    Attributes
    ----------
    g : _Bands
    units : int
        Bands of all images.
    seconds : float
        What one core needs, roughly.
    phases : (P, 2) int64
        First and last + 1 tap of each phase.
    cells, taps : (kh * kw,) int64
        The taps of one phase after the other: where their cells are, and where their weights are.
    """

    g: _Bands
    units: int
    seconds: float
    phases: np.ndarray
    cells: np.ndarray
    taps: np.ndarray


@functools.lru_cache(maxsize=256)  # a layer in training needs its plan at each step
def _plan(geometry, images, group, most_bytes):
    """The plan for one group of a convolution, for so many images."""
    of, (filters, kh, kw, group_channels) = geometry.windows, geometry.weight
    if _has_lone_pixels(of):  # one image of many rows, which can be cut anywhere
        of, images = windows("conv2d_input_gradient", (images * of.height * of.width, 1), (1, 1)), 1
    words, (sy, sx), (dy, dx) = words_for(group_channels), of.stride, of.dilation
    group_filters = filters // geometry.groups

    # Bands of equal height whose cells fit the cache.
    rows_before, columns_before = (kh - 1) * dy // sy, (kw - 1) * dx // sx
    columns = (of.width - 1 + of.left) // sx - of.left // sx + columns_before + 1
    most = most_bytes // (columns * group_filters * 12)
    band = max(1, min(of.height, (most - rows_before - 1) * sy + 1))
    bands = -(-of.height // band)
    band = -(-of.height // bands)
    rows = -(-(band - 1) // sy) + rows_before + 1
    g = _Bands(
        of, geometry.image[2], group * group_channels, group_channels, filters,
        group * group_filters, group_filters, band, bands, rows_before, columns_before, columns,
        rows * columns,
    )  # fmt: skip

    phases, cells, taps = np.zeros((sy * sx, 2), np.int64), [], []
    for phase in range(sy * sx):
        phases[phase, 0] = len(taps)
        for ky, kx in np.ndindex(kh, kw):
            if (ky * dy % sy, kx * dx % sx) == divmod(phase, sx):
                cells.append(-(ky * dy // sy * columns + kx * dx // sx))
                taps.append((ky * kw + kx) * words)
        phases[phase, 1] = len(taps)
    cells, taps = np.array(cells, np.int64), np.array(taps, np.int64)
    seconds = images * of.height * of.width * group_channels * kh * kw * group_filters / SPEED
    return _Plan(g, images * bands, seconds, phases, cells, taps)


@inlined
def _band(g, unit):
    """A band, counted through all images.

    Returns
    -------
    Its image, its first row and the one behind the last; row and column of the gradient that its
    first cell is for.
    """
    of, image, y0 = g.windows, unit // g.bands, unit % g.bands * g.band
    y1 = min(y0 + g.band, of.height)
    top, left = (y0 + of.top) // of.row_stride - g.rows_before, of.left // of.column_stride
    return image, y0, y1, top, left - g.columns_before


class _Signs(NamedTuple):
    """Packed weights, and where their signs are.

    Attributes
    ----------
    weight : (...,) uint64
    words : int
        Of a tap.
    starts : (filters,) int32
        Where filters begin.
    cells, taps, phases
        As in `_Plan`.
    """

    weight: np.ndarray
    words: int
    starts: np.ndarray
    cells: np.ndarray
    taps: np.ndarray
    phases: np.ndarray


def _by_masks(geometry, group, grad, weight, out):
    """As `_by_tables`."""
    plan = _plan(geometry, len(grad), group, _BAND_BYTES)
    g, (filters, _, _, words) = plan.g, weight.shape
    tasks = min(threads.tasks_for(plan.seconds), plan.units)
    values = empty(tasks * (g.cells * g.group_filters + FLOATS), np.float32)
    places = empty(len(values), np.int32)
    ends = empty(tasks * (g.cells + 1), np.int64)
    totals = empty(tasks * g.cells, np.float32)
    starts = np.arange(filters, dtype=np.int32) * (len(plan.taps) * words)
    signs = _Signs(weight.reshape(-1), words, starts, plan.cells, plan.taps, plan.phases)
    shares, lists = parallel.shares(plan.units, tasks), (values, places, ends, totals)
    arrays = grad.reshape(-1), signs, lists, out.reshape(-1)
    parallel.share_out(_input_by_masks, shares, *arrays, g)


@kernel(allocates=False)
def _input_by_masks(first, end, slot, grad, signs, lists, out, g):
    """Bands first to end - 1, counted through all images.

    A cell c is the list of the pixel's gradients that are not zero, from ends[c] to ends[c + 1]:
    values, and where the filters begin in the weight; and the sum of the values.
    """
    values, places, ends, totals = lists
    of, cells, taps, phases = g.windows, signs.cells, signs.taps, signs.phases
    cells_at, ends_at = slot * g.cells, slot * (g.cells + 1)
    list_at = slot * (g.cells * g.group_filters + FLOATS)
    for unit in range(first, end):
        image, y0, y1, top, left = _band(g, unit)
        n, cell = list_at, 0
        ends[ends_at] = n
        for oy in range(top, (y1 - 1 + of.top) // of.row_stride + 1):
            for ox in range(left, left + g.columns):
                sum_of_all = np.float32(0)
                if 0 <= oy < of.out_height and 0 <= ox < of.out_width:
                    pixel = (image * of.out_height + oy) * of.out_width + ox
                    n, sum_of_all = list_nonzero(
                        grad, pixel * g.filters + g.first_filter, g.group_filters, np.int64(1),
                        signs.starts, g.first_filter, values, places, n,
                    )  # fmt: skip
                totals[cells_at + cell] = sum_of_all
                cell += 1
                ends[ends_at + cell] = n
        for y in range(y0, y1):
            for x in range(of.width):
                phase = (y + of.top) % of.row_stride * of.column_stride
                phase += (x + of.left) % of.column_stride
                row, column = (y + of.top) // of.row_stride, (x + of.left) // of.column_stride
                cell = (row - top) * g.columns + column - left
                sum_of_all = np.float32(0)
                for tap in range(phases[phase, 0], phases[phase, 1]):
                    sum_of_all += totals[cells_at + cell + cells[tap]]
                pixel = (image * of.height + y) * of.width + x
                to = pixel * g.channels + g.first_channel
                minus = splat_like(sum_of_all, zeros(64))
                for word in range(0, signs.words, 2):
                    more, sums = min(1, signs.words - 1 - word), (zeros(64), zeros(64))
                    for tap in range(phases[phase, 0], phases[phase, 1]):
                        at, offset = ends_at + cell + cells[tap], taps[tap] + word
                        sums = add_listed(
                            values, places, ends[at], ends[at + 1], signs.weight, offset, more, sums
                        )
                    low, high = sums
                    at, count = to + 64 * word, g.group_channels - 64 * word
                    store_tile((low + low - minus,), (at,), out, count)
                    if more:
                        store_tile((high + high - minus,), (at + 64,), out, count - 64)
