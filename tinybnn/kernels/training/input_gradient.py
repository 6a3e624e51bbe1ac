"""Gradient of a binary convolution or linear layer in its input.

It is a product of floats with signs (`sign_gradients`), of the gradient of the output with the
signs of the weight. The place of an output pixel's taps in the input decides which gradients a sum
has: an input pixel collects from all the output pixels whose taps fall on it.

Each gradient is prepared once, as tables (`lookup`) or as a list (`masked`), and then serves all
the taps. What is prepared lies in *cells*, one an output pixel, for a band of rows at a time that
fits the cache.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from tinybnn.kernels.floats import convolution
from tinybnn.kernels.machine import parallel
from tinybnn.kernels.machine.checks import check_row, check_words, out_array
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import FLOATS, inlined, kernel, splat_like, zeros
from tinybnn.kernels.machine.tiles import store_tile
from tinybnn.kernels.machine.windows import Windows, pair, windows
from tinybnn.kernels.signs.bits import unpack, unpack_reference, words_for
from tinybnn.kernels.training.lookup import (
    LANES,
    PATTERNS,
    POWERS,
    STEP,
    STEP_FLOATS,
    Rows,
    Signs,
    Sums,
    Tables,
    Turning,
    make_tables,
    product,
    turn,
)
from tinybnn.kernels.training.masked import add_listed, list_nonzero
from tinybnn.kernels.training.sign_gradients import (
    Geometry,
    as_image,
    check_geometry,
    choose_method,
    tasks_for_products,
)

_BAND_BYTES = 1 << 20  # tables of the input gradient that are kept at a time, as far as possible


def conv2d_input_gradient(
    grad,
    weight,
    channels,
    size,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    method=None,
    out=None,
):
    """Gradient of a binary convolution in its input: floats times the signs of the weight.

    With the input pixel (y, x) that the tap (ky, kx) of output pixel (oy, ox) falls on,
    y = oy * stride - padding + ky * dilation (x likewise),

        out[n, y, x, c] = sum over o, ky, kx of grad[n, oy, ox, o] * sign(weight[o, ky, kx, c]).

    What the padding holds is constant and does not matter here.

    Parameters
    ----------
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    weight : (O, kh, kw, words_for(channels // groups)) uint64
    channels : int
        C, the channels of the input.
    size : (int, int)
        H, W of the input.
    stride, padding, dilation : (int, int)
        Along height and width.
    groups : int
        A divisor of C and of O.
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
        If a dtype, a shape or a parameter does not fit, or the CPU cannot do ``method``.
    """
    name = "conv2d_input_gradient"
    size, weight = pair(name, "size", size, 1), check_words(name, "weight", weight, 4)
    grad, geometry = check_geometry(
        name, grad, channels, groups, size=size, kernel_size=weight.shape[1:3], stride=stride,
        padding=padding, dilation=dilation,
    )  # fmt: skip
    check_row(name, "weight", weight, "channels // groups", geometry.group_channels)
    if len(weight) != grad.shape[3]:
        raise ValueError(f"{name}: weight has {len(weight)} filters, grad has {grad.shape[3]}")
    out = out_array(name, out, (len(grad), *size, channels))
    per_group, taps = geometry.group_channels, geometry.windows.taps
    method = choose_method(
        name, method, grad, per_group, taps * per_group, taps * -(-per_group // LANES)
    )
    if out.size == 0:
        return out
    if method == "float":
        signs = unpack(weight, per_group).transpose(0, 3, 1, 2)
        return convolution.conv2d_input(grad, signs, size, *geometry.options, out=out)
    of = geometry.windows
    if taps == 1 and of.stride == (1, 1) and of.padding == (0, 0):
        # Each pixel for itself: one image of many rows, which can be cut anywhere.
        pixels = len(grad) * size[0] * size[1]
        grad = grad.reshape(1, pixels, 1, grad.shape[3])
        geometry = geometry._replace(windows=windows(name, (pixels, 1), (1, 1)))
    for group in range(groups):
        _input_gradient(grad, weight, geometry, group, method, out)
    return out


def conv2d_input_gradient_reference(
    grad,
    weight,
    channels,
    size,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
):
    """What :func:`conv2d_input_gradient` computes, in plain NumPy, in the dtype of ``grad``."""
    kernel_size = weight.shape[1:3]
    of = windows("conv2d_input_gradient_reference", size, kernel_size, stride, padding, dilation)
    geometry = Geometry(channels, groups, of)
    signs = unpack_reference(weight, geometry.group_channels, grad.dtype)  # (O, kh, kw, C/groups)
    padded = np.zeros((len(grad), *of.padded_size, channels), grad.dtype)
    for ky, kx, seen in of.views(padded):  # seen : (N, OH, OW, C), a view
        for o, c in geometry.group_slices(grad.shape[3]):
            # Each output pixel is spread over the pixels its taps fall on.
            seen[..., c] += grad[..., o] @ signs[o, ky, kx]
    return padded[:, of.top : of.top + of.height, of.left : of.left + of.width]


def linear_input_gradient(grad, weight, features, *, method=None, out=None):
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
    result = conv2d_input_gradient(grad, weight, features, (1, 1), method=method, out=out)
    return result[:, 0, 0]


# ---------------------------------------------------------------------------------- bands and cells


class _Bands(NamedTuple):
    """The numbers that the kernels for the gradient in the input need.

    The image is worked on in bands of rows. For each a part of the gradient is laid out, ``cells``
    in rows of ``columns``, those outside the gradient with nothing in them: a cell is the tables of
    a pixel, or its list.

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
    cell: int  # float32 numbers of a cell


class _Plan(NamedTuple):
    """All that does not depend on what the arrays hold.

    Attributes
    ----------
    g : _Bands
    phases : (P, 2) int64
        First and last + 1 tap of each phase.
    cells, taps : (kh * kw,) int64
        The taps of one phase after the other: where their cells are, and where their weights are.
    products : int
    """

    g: _Bands
    phases: np.ndarray
    cells: np.ndarray
    taps: np.ndarray
    products: int


@functools.lru_cache(maxsize=256)  # a layer in training needs its plan at each step
def _plan(geometry, images, filters, group, method, most_bytes):
    """The plan for one group of a convolution, for so many images and filters of all groups."""
    of, words = geometry.windows, words_for(geometry.group_channels)
    (kh, kw), (sy, sx), (dy, dx) = of.kernel_size, of.stride, of.dilation
    group_filters, group_channels = filters // geometry.groups, geometry.group_channels
    steps = -(-group_filters // STEP)
    cell = steps * STEP_FLOATS if method == "lookup" else 3 * group_filters  # in float32

    # Bands of equal height whose cells fit the cache.
    rows_before, columns_before = (kh - 1) * dy // sy, (kw - 1) * dx // sx
    columns = (of.width - 1 + of.left) // sx - of.left // sx + columns_before + 1
    most = most_bytes // (columns * cell * 4)
    band = max(1, min(of.height, (most - rows_before - 1) * sy + 1))
    bands = -(-of.height // band)
    band = -(-of.height // bands)
    rows = -(-(band - 1) // sy) + rows_before + 1
    g = _Bands(
        of, geometry.channels, group * group_channels, group_channels, filters,
        group * group_filters, group_filters, band, bands, rows_before, columns_before, columns,
        rows * columns, cell,
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
    products = images * of.height * of.width * group_channels * of.taps * group_filters
    return _Plan(g, phases, cells, taps, products)


def _input_gradient(grad, weight, geometry, group, method, out):
    """One group. grad : (N, OH, OW, O), out : (N, H, W, C), of which C / groups are written."""
    images, *_, filters = grad.shape
    plan = _plan(geometry, images, filters, group, method, _BAND_BYTES)
    g, bands = plan.g, images * plan.g.bands
    tasks = min(tasks_for_products(plan.products), bands)
    shares = parallel.shares(bands, tasks)
    flat, result = grad.reshape(-1), out.reshape(-1)
    if method == "lookup":
        turned, turning = _turn_weight(weight, geometry, group)
        scratch = empty(tasks * g.cells * g.cell, np.float32)
        pixels = empty(2 * tasks * g.band * g.windows.width, np.int64)
        tables = turned, turning.offsets, turning.phases, PATTERNS
        parallel.share_out(_input_by_tables, shares, flat, tables, scratch, pixels, result, g)
        return
    values = empty(tasks * (g.cells * g.group_filters + FLOATS), np.float32)
    places = empty(len(values), np.int32)
    starts = np.arange(filters, dtype=np.int32) * weight[0].size
    ends = empty(tasks * (g.cells + 1), np.int64)
    totals = empty(tasks * g.cells, np.float32)
    signs = _Signs(weight.reshape(-1), weight.shape[3], starts, plan.cells, plan.taps, plan.phases)
    lists = values, places, ends, totals
    parallel.share_out(_input_by_masks, shares, flat, signs, lists, result, g)


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


# ------------------------------------------------------------------------------------ lookup tables


class _TurnedWeights(NamedTuple):
    """Where the signs of a group's weights come from and go to, for `turn`, and their tables.

    Attributes
    ----------
    offsets : (...,) int64
        For each phase, step and tap: where the step's tables are, from a pixel's cell.
    phases : (P, 4) int64
        For each phase: where its offsets begin and end, where its integers begin, and how many of
        them a panel has.
    steps : int
    turns : list of Turning
        For each phase that has taps.
    size : int
        Integers of all phases.
    """

    offsets: np.ndarray
    phases: np.ndarray
    steps: int
    turns: list
    size: int


@functools.lru_cache(maxsize=256)
def _turning(geometry, filters, group):
    """The same for filters of all groups, whatever their weights."""
    plan = _plan(geometry, 1, filters, group, "lookup", _BAND_BYTES)  # no band matters here
    g, per_filter = plan.g, len(plan.taps) * words_for(plan.g.group_channels)
    steps, panels = -(-g.group_filters // STEP), -(-g.group_channels // LANES)
    # Where the words of each filter begin; the last filter is repeated.
    starts = np.minimum(np.arange(steps * STEP), g.group_filters - 1) + g.first_filter
    starts *= per_filter
    offsets, phases, turns = [], np.zeros((len(plan.phases), 4), np.int64), []
    channel = np.arange(0, g.group_channels, FLOATS)
    base = 0
    for phase, (first, end) in enumerate(plan.phases):
        count = end - first
        phases[phase] = len(offsets), len(offsets) + steps * count, base, steps * count * LANES
        for step in range(steps):
            offsets.extend(plan.cells[first:end] * steps * STEP_FLOATS + step * STEP_FLOATS)
        if count:
            sources = plan.taps[first:end, None] + channel // 64
            shifts = np.broadcast_to(channel % 64, sources.shape)
            places = np.arange(count)[:, None] * LANES + channel // LANES * phases[phase, 3]
            places = base + places + channel % LANES
            shifts = shifts.reshape(-1).astype(np.uint64)
            of_phase = sources.reshape(-1), shifts, places.reshape(-1)
            turns.append(Turning(starts, *of_phase, 1, int(count) * LANES, 0))
            base += panels * phases[phase, 3]
    return _TurnedWeights(np.array(offsets, np.int64), phases, steps, turns, int(base))


def _turn_weight(weight, geometry, group):
    """The weights of a group with their signs along the filters, and the tables they belong to.

    Returns
    -------
    turned : (...,) int32
        For each phase, panel, step and tap of the phase: integers for 64 channels, whose bits are
        the signs of 32 filters.
    turning : _TurnedWeights
    """
    turning = _turning(geometry, len(weight), group)
    turned, words = empty(turning.size, np.int32), weight.reshape(-1)
    for of_phase in turning.turns:
        turn(0, turning.steps, 0, words, of_phase, POWERS, turned)
    return turned, turning


@kernel(allocates=False)
def _input_by_tables(first, end, slot, grad, signs, tables, pixels, out, g):
    """Bands first to end - 1, counted through all images."""
    of, (turned, offsets, phases, patterns) = g.windows, signs
    base, list_at = slot * g.cells * g.cell, 2 * slot * g.band * of.width
    for unit in range(first, end):
        image, y0, y1, top, left = _band(g, unit)
        at = base
        for oy in range(top, (y1 - 1 + of.top) // of.row_stride + 1):
            for ox in range(left, left + g.columns):
                count = 0
                if 0 <= oy < of.out_height and 0 <= ox < of.out_width:
                    count = g.group_filters
                pixel = (image * of.out_height + oy) * of.out_width + ox
                gradient = pixel * g.filters + g.first_filter
                make_tables(grad, gradient, count, np.int64(1), patterns, tables, at, g.cell)
                at += g.cell
        for phase in range(len(phases)):
            phase_y, phase_x = phase // of.column_stride, phase % of.column_stride
            count = np.int64(0)
            for y in range(y0 + (phase_y - y0 - of.top) % of.row_stride, y1, of.row_stride):
                row = ((y + of.top) // of.row_stride - top) * g.columns - left
                x0 = (phase_x - of.left) % of.column_stride
                for x in range(x0, of.width, of.column_stride):
                    column = (x + of.left) // of.column_stride
                    pixel = (image * of.height + y) * of.width + x
                    pixels[list_at + 2 * count] = base + (row + column) * g.cell
                    pixels[list_at + 2 * count + 1] = pixel * g.channels + g.first_channel
                    count += 1
            offset, end_offset, start, panel_size = phases[phase]
            product(
                Rows(pixels, list_at, count), Tables(tables, offsets, offset, end_offset),
                Signs(turned, start, panel_size), Sums(out, g.group_channels, np.bool_(False)),
            )  # fmt: skip


# --------------------------------------------------------------------------------- masked additions


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
