"""Gradient of a binary convolution or linear layer in its input.

It is a product of floats and signs (`sign_gradients`): the gradient of the output times the signs
of the weight. An input pixel collects gradients from all output pixels whose taps fall on it.

Each gradient is prepared once, as tables (`lookup`) or as a list (`masked`), and then serves all
taps, for a band of rows at a time that fits the cache.

For speed alone: `conv2d_input_gradient_reference` is the plain NumPy version, and `tinybnn bench
train --profile` shows its share of a step.
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

# Filters whose tables are in use at a time if a sum has several taps: it determines the order.
_CHUNK = 32 if "avx512f" in cpu_features() else lookup.CHUNK
_BAND_BYTES = 1 << 20  # approximate size of the sums or lists kept at a time


def conv2d_input_gradient(
    grad: ArrayLike,
    weight: ArrayLike,
    geometry: Geometry,
    *,
    method: str | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Compute the gradient of a binary convolution in its input: floats times signs.

    With the input pixel (y, x) that the tap (ky, kx) of output pixel (oy, ox) falls on, y = oy *
    stride - padding + ky * dilation (x likewise),

        out[n, y, x, c] = sum over o, ky, kx of grad[n, oy, ox, o] * sign(weight[o, ky, kx, c]).

    The value of the padding is constant and does not matter.

    Parameters
    ----------
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    weight : (O, kh, kw, words_for(C / groups)) uint64
    geometry : Geometry
        From `geometry_of`.
    method : "lookup", "masked" or "float", optional
        Default: the fastest for this CPU and the share of zeros in ``grad``.
    out : (N, H, W, C) float32, optional
        C-contiguous array for the result.

    Returns
    -------
    (N, H, W, C) float32

    Raises
    ------
    ValueError
        If a dtype or a shape does not match, or the CPU cannot do ``method``.
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
    compute = _by_tables if method == "lookup" else _by_masks
    for group in range(geometry.groups):
        compute(geometry, group, grad, weight, out)
    return out


def conv2d_input_gradient_reference(
    grad: FloatArray, weight: Words, geometry: Geometry
) -> FloatArray:
    """Compute :func:`conv2d_input_gradient` in plain NumPy, in the dtype of ``grad``."""
    window = geometry.windows
    signs = unpack_reference(weight, geometry.weight[3], grad.dtype)  # (O, kh, kw, C / groups)
    padded = np.zeros((len(grad), *window.padded_size, geometry.image[2]), grad.dtype)
    for ky, kx, pixels in window.views(padded):  # pixels : (N, OH, OW, C), a view
        for o, c in geometry.group_slices():
            # Each output pixel is added to the pixels that its taps fall on.
            pixels[..., c] += grad[..., o] @ signs[o, ky, kx]
    return padded[
        :, window.top : window.top + window.height, window.left : window.left + window.width
    ]


def linear_input_gradient(
    grad: ArrayLike,
    weight: ArrayLike,
    features: int,
    *,
    method: str | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Compute the gradient of a binary linear layer in its input: ``grad @ sign(weight)``.

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


def _has_lone_pixels(window):
    """Tell whether each input pixel contributes to the output pixel at the same position only."""
    return window.taps == 1 and window.stride == (1, 1) and window.padding == (0, 0)


# ------------------------------------------------------------------------------------ lookup tables


class _Blocks(NamedTuple):
    """The numbers that the kernel needs.

    The images are cut into bands of rows: first come the first bands of all images, then the second
    ones. 16 bands side by side form a *block*: since all of them have the same taps at a pixel, the
    tables of its gradients serve all taps.
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
    """Plan one group of a convolution for ``images`` images; return numbers and a `SignLayout`."""
    window, (filters, kh, kw, per_group) = geometry.windows, geometry.weight
    if _has_lone_pixels(window):
        images, window = images * window.height * window.width, windows("", (1, 1), (1, 1))
    words, group_filters = words_for(per_group), filters // geometry.groups
    lanes, stride = -(-per_group // lookup.PANEL) * lookup.PANEL, window.row_stride
    # The sums of a block fit the cache; small batches are cut so that all tasks have full blocks.
    fitting = (
        most_bytes // (window.width * lanes * FLOATS * 4),
        window.height * images // (FLOATS * tasks),
    )
    band = max(1, min(window.height, *fitting) // stride) * stride
    g = _Blocks(
        window, images, geometry.image[2], group * per_group, per_group, lanes, filters,
        group * group_filters, group_filters, band, -(-window.height // band) * images,
        _CHUNK if window.taps > 1 else lookup.CHUNK,
    )  # fmt: skip
    starts = (np.arange(group_filters) + g.first_filter) * (kh * kw * words)
    return g, lookup.sign_layout(starts, np.arange(kh * kw) * words, per_group)


def _by_tables(geometry, group, grad, weight, out):
    """Compute one group by look-ups.

    grad : (N, OH, OW, O), out : (N, H, W, C), in which C / groups channels are written
    """
    height, width, channels = geometry.image
    products = len(grad) * height * width * channels * math.prod(geometry.weight[:3])
    tasks = threads.tasks_for(products / geometry.groups**2 / SPEED)
    g, signs = _plan_tables(geometry, len(grad), group, tasks, _BAND_BYTES)
    if g.group_filters % 4:  # four gradients are loaded at a time
        group_grad = grad[..., g.first_filter : g.first_filter + g.group_filters]
        grad = with_zeros(group_grad, 4)
        g = g._replace(first_filter=0, filters=grad.shape[3])
    blocks = -(-g.bands // FLOATS)
    tasks = min(tasks, blocks)
    numbers = lookup.sign_indices(signs, weight.reshape(-1), tasks)
    vectors = empty(tasks * lookup.CHUNK * FLOATS, np.float32)
    tables = empty(tasks * lookup.STEPS * lookup.TABLE, np.float32)
    sums = empty(tasks * g.band * g.windows.width * g.lanes * FLOATS, np.float32)
    places = np.empty(tasks * FLOATS, np.int64)
    scratch, shares = (vectors, tables, sums, places), parallel.shares(blocks, tasks)
    arrays = grad.reshape(-1), numbers, scratch, out.reshape(-1)
    parallel.share_out(_input_by_tables, shares, *arrays, g)


@kernel(allocates=False)
def _input_by_tables(first, end, slot, grad, numbers, scratch, out, g):
    """Compute blocks first to end - 1.

    The sums of an input pixel run over chunks of filters, and for each chunk over the taps.
    Visiting the gradients from the last to the first brings the taps into their order.
    """
    window, (vectors, tables, sums, places) = g.windows, scratch
    vector, table = slot * lookup.CHUNK * FLOATS, slot * lookup.STEPS * lookup.TABLE
    taps = window.kernel_height * window.kernel_width
    pixel_floats, tap_numbers = g.lanes * FLOATS, g.lanes * lookup.STEPS // 4  # sums, numbers
    start, lane = slot * g.band * window.width * pixel_floats, slot * FLOATS
    # Rows of the gradient whose taps fall on a band, relative to the band.
    reach = (window.kernel_height - 1) * window.row_dilation - window.top
    row_end, row_first = (
        (g.band - 1 + window.top) // window.row_stride + 1,
        -(reach // window.row_stride),
    )
    for block in range(first, end):
        clear(sums, start, g.band * window.width * pixel_floats)
        for chunk in range(0, g.group_filters, g.chunk):
            count = min(g.chunk, g.group_filters - chunk)
            signs = chunk // lookup.CHUNK * taps * tap_numbers
            signs += chunk % lookup.CHUNK // 4 * (lookup.PANEL // 4)
            for row in range(row_end - 1, row_first - 1, -1):
                if not _gradients_of_row(block, row, places, lane, g):
                    continue
                for column in range(window.out_width - 1, -1, -1):
                    offset = column * g.filters + g.first_filter + chunk
                    lookup.transpose_rows(grad, places, lane, offset, count, vectors, vector)
                    steps = lookup.make_tables(
                        vectors, vector, np.int64(FLOATS), count, tables, table
                    )
                    for tap in range(taps):
                        ky, kx = tap // window.kernel_width, tap % window.kernel_width
                        y = row * window.row_stride - window.top + ky * window.row_dilation
                        x = (
                            column * window.column_stride
                            - window.left
                            + kx * window.column_dilation
                        )
                        if 0 <= y < g.band and 0 <= x < window.width:
                            to = start + (y * window.width + x) * pixel_floats
                            lookup.add_looked_up(
                                tables, table, steps, numbers, signs + tap * tap_numbers,
                                sums, to, g.group_channels,
                            )  # fmt: skip
        for y in range(g.band):
            _inputs_of_row(block, y, places, lane, g)
            for x in range(window.width):
                lookup.transpose_back(
                    sums, start + (y * window.width + x) * pixel_floats, g.group_channels,
                    out, places, lane, x * g.channels + g.first_channel,
                )  # fmt: skip


@inlined
def _gradients_of_row(block, row, places, at, g):
    """Write where a row of the gradient, relative to a band, begins in each image, or -1.

    Returns
    -------
    bool
        Whether any band has such a row.
    """
    window, has_any = g.windows, False
    image, rows = block * FLOATS % g.images, g.band // window.row_stride
    y = block * FLOATS // g.images * rows + row
    for i in range(FLOATS):
        is_there = block * FLOATS + i < g.bands and 0 <= y < window.out_height
        pixel = (image * window.out_height + y) * window.out_width
        places[at + i] = pixel * g.filters if is_there else -1
        has_any, image = has_any or is_there, image + 1
        if image == g.images:
            image, y = 0, y + rows
    return has_any


@inlined
def _inputs_of_row(block, row, places, at, g):
    """Write where a row of a band begins in each image, or -1."""
    window, image = g.windows, block * FLOATS % g.images
    y = block * FLOATS // g.images * g.band + row
    for i in range(FLOATS):
        is_there = block * FLOATS + i < g.bands and y < window.height
        places[at + i] = (image * window.height + y) * window.width * g.channels if is_there else -1
        image += 1
        if image == g.images:
            image, y = 0, y + g.band


# --------------------------------------------------------------------------------- masked additions


class _Bands(NamedTuple):
    """The numbers that the kernel needs.

    The image is processed in bands of rows. For each, a part of the gradient is laid out in
    *cells*, one per output pixel, in rows of ``columns``: the list of a pixel, empty outside the
    gradient.

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
    rows_before: int  # gradient rows that reach an input row, except the last one
    columns_before: int
    columns: int
    cells: int  # most cells of a band


class _Plan(NamedTuple):
    """Everything that does not depend on the contents of the arrays.

    Attributes
    ----------
    g : _Bands
    units : int
        Bands of all images.
    seconds : float
        Estimated time of one core.
    phases : (P, 2) int64
        First and last + 1 tap of each phase.
    cells, taps : (kh * kw,) int64
        Relative cell, and offset of the weights, of each tap, ordered by phase.
    """

    g: _Bands
    units: int
    seconds: float
    phases: np.ndarray
    cells: np.ndarray
    taps: np.ndarray


@functools.lru_cache(maxsize=256)  # a layer in training needs its plan at each step
def _plan(geometry, images, group, most_bytes):
    """Plan one group of a convolution for ``images`` images."""
    window, (filters, kh, kw, group_channels) = geometry.windows, geometry.weight
    if _has_lone_pixels(window):  # one image of many rows, which can be divided anywhere
        window, images = (
            windows("conv2d_input_gradient", (images * window.height * window.width, 1), (1, 1)),
            1,
        )
    words, (sy, sx), (dy, dx) = words_for(group_channels), window.stride, window.dilation
    group_filters = filters // geometry.groups

    # Bands of equal height whose cells fit the cache.
    rows_before, columns_before = (kh - 1) * dy // sy, (kw - 1) * dx // sx
    columns = (window.width - 1 + window.left) // sx - window.left // sx + columns_before + 1
    most = most_bytes // (columns * group_filters * 12)
    band = max(1, min(window.height, (most - rows_before - 1) * sy + 1))
    bands = -(-window.height // band)
    band = -(-window.height // bands)
    rows = -(-(band - 1) // sy) + rows_before + 1
    g = _Bands(
        window, geometry.image[2], group * group_channels, group_channels, filters,
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
    seconds = (
        images * window.height * window.width * group_channels * kh * kw * group_filters / SPEED
    )
    return _Plan(g, images * bands, seconds, phases, cells, taps)


@inlined
def _band(g, unit):
    """Return a band, numbered across all images.

    Returns
    -------
    image, first row, end row : int
    top, left : int
        Row and column of the gradient of its first cell.
    """
    window, image, y0 = g.windows, unit // g.bands, unit % g.bands * g.band
    y1 = min(y0 + g.band, window.height)
    top, left = (
        (y0 + window.top) // window.row_stride - g.rows_before,
        window.left // window.column_stride,
    )
    return image, y0, y1, top, left - g.columns_before


class _Signs(NamedTuple):
    """Packed weights and their addresses.

    Attributes
    ----------
    weight : (...,) uint64
    words : int
        Words of a tap.
    starts : (filters,) int32
        Start of each filter.
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
    """Compute one group by masked additions; arrays as in `_by_tables`."""
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
    """Compute bands first to end - 1, numbered across all images.

    A cell c lists the pixel's nonzero gradients, from ends[c] to ends[c + 1]: their values, and the
    starts of their filters in the weight. ``totals`` holds the sum of the values.
    """
    values, places, ends, totals = lists
    window, cells, taps, phases = g.windows, signs.cells, signs.taps, signs.phases
    cells_at, ends_at = slot * g.cells, slot * (g.cells + 1)
    list_at = slot * (g.cells * g.group_filters + FLOATS)
    for unit in range(first, end):
        image, y0, y1, top, left = _band(g, unit)
        n, cell = list_at, 0
        ends[ends_at] = n
        for oy in range(top, (y1 - 1 + window.top) // window.row_stride + 1):
            for ox in range(left, left + g.columns):
                sum_of_all = np.float32(0)
                if 0 <= oy < window.out_height and 0 <= ox < window.out_width:
                    pixel = (image * window.out_height + oy) * window.out_width + ox
                    n, sum_of_all = list_nonzero(
                        grad, pixel * g.filters + g.first_filter, g.group_filters, np.int64(1),
                        signs.starts, g.first_filter, values, places, n,
                    )  # fmt: skip
                totals[cells_at + cell] = sum_of_all
                cell += 1
                ends[ends_at + cell] = n
        for y in range(y0, y1):
            for x in range(window.width):
                phase = (y + window.top) % window.row_stride * window.column_stride
                phase += (x + window.left) % window.column_stride
                row, column = (
                    (y + window.top) // window.row_stride,
                    (x + window.left) // window.column_stride,
                )
                cell = (row - top) * g.columns + column - left
                sum_of_all = np.float32(0)
                for tap in range(phases[phase, 0], phases[phase, 1]):
                    sum_of_all += totals[cells_at + cell + cells[tap]]
                pixel = (image * window.height + y) * window.width + x
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
