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
from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.checks import out_array
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import FLOATS, inlined, kernel, splat_like, zeros
from tinybnn.kernels.machine.tiles import store_tile
from tinybnn.kernels.machine.windows import Windows, windows
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
    vectors,
)
from tinybnn.kernels.training.masked import add_listed, list_nonzero
from tinybnn.kernels.training.sign_gradients import (
    SPEED,
    as_image,
    choose_method,
    geometry_of,
    operands,
)

_BAND_BYTES = 1 << 20  # tables of the input gradient that are kept at a time, as far as possible


def conv2d_input_gradient(grad, weight, geometry, *, method=None, out=None):
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
    panels = taps * -(-per_group // LANES)
    method = choose_method(name, method, grad, per_group, taps * per_group, panels)
    out = out_array(name, out, (len(grad), *geometry.image))
    if out.size == 0 or grad.size == 0:
        out[...] = 0
        return out
    if method == "float":
        signs, size = unpack(weight, per_group).transpose(0, 3, 1, 2), geometry.image[:2]
        return convolution.conv2d_input(grad, signs, size, *geometry.options, out=out)
    for group in range(geometry.groups):
        plan = _plan(geometry, len(grad), group, method, _BAND_BYTES)
        (_by_tables if method == "lookup" else _by_masks)(plan, grad, weight, out)
    return out


def conv2d_input_gradient_reference(grad, weight, geometry):
    """What :func:`conv2d_input_gradient` computes, in plain NumPy, in the dtype of ``grad``."""
    of = geometry.windows
    signs = unpack_reference(weight, geometry.weight[3], grad.dtype)  # (O, kh, kw, C / groups)
    padded = np.zeros((len(grad), *of.padded_size, geometry.image[2]), grad.dtype)
    for ky, kx, seen in of.views(padded):  # seen : (N, OH, OW, C), a view
        for o, c in geometry.group_slices():
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
    geometry = geometry_of(features, len(weight), (1, 1), (1, 1))
    return conv2d_input_gradient(grad, weight, geometry, method=method, out=out)[:, 0, 0]


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
    units : int
        Bands of all images.
    seconds : float
        What one core needs, roughly.
    phases : (P, 2) int64
        First and last + 1 tap of each phase.
    cells, taps : (kh * kw,) int64
        The taps of one phase after the other: where their cells are, and where their weights are.
    turned : _Turned or None
        For tables.
    """

    g: _Bands
    units: int
    seconds: float
    phases: np.ndarray
    cells: np.ndarray
    taps: np.ndarray
    turned: _Turned | None


@functools.lru_cache(maxsize=256)  # a layer in training needs its plan at each step
def _plan(geometry, images, group, method, most_bytes):
    """The plan for one group of a convolution, for so many images."""
    of, (filters, kh, kw, group_channels) = geometry.windows, geometry.weight
    if kh * kw == 1 and of.stride == (1, 1) and of.padding == (0, 0):
        # Each pixel for itself: one image of many rows, which can be cut anywhere.
        of, images = windows("conv2d_input_gradient", (images * of.height * of.width, 1), (1, 1)), 1
    words, (sy, sx), (dy, dx) = words_for(group_channels), of.stride, of.dilation
    group_filters = filters // geometry.groups
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
        of, geometry.image[2], group * group_channels, group_channels, filters,
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
    seconds = images * of.height * of.width * group_channels * kh * kw * group_filters / SPEED
    turned = _turned(g, phases, cells, taps) if method == "lookup" else None
    return _Plan(g, images * bands, seconds, phases, cells, taps, turned)


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


class _Turned(NamedTuple):
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
        Integers of all phases: for each phase, panel, step and tap of the phase those of 64
        channels, whose bits are the signs of 32 filters.
    """

    offsets: np.ndarray
    phases: np.ndarray
    steps: int
    turns: list
    size: int


def _turned(g, first_and_end, cells, taps):
    """The same for the phases, cells and taps of a plan."""
    per_filter = len(taps) * words_for(g.group_channels)
    steps, panels = -(-g.group_filters // STEP), -(-g.group_channels // LANES)
    # Where the words of each filter begin; the last filter is repeated.
    starts = np.minimum(np.arange(steps * STEP), g.group_filters - 1) + g.first_filter
    starts *= per_filter
    offsets, phases, turns = [], np.zeros((len(first_and_end), 4), np.int64), []
    base = 0
    for phase, (first, end) in enumerate(first_and_end):
        count = end - first
        phases[phase] = len(offsets), len(offsets) + steps * count, base, steps * count * LANES
        for step in range(steps):
            offsets.extend(cells[first:end] * steps * STEP_FLOATS + step * STEP_FLOATS)
        if count:
            channel, *sources = vectors(taps[first:end], g.group_channels)
            places = base + channel // LANES * phases[phase, 3] + channel % LANES
            places = np.add.outer(np.arange(count) * LANES, places).reshape(-1)
            turns.append(Turning(starts, *sources, places, 1, int(count) * LANES, 0))
            base += panels * phases[phase, 3]
    return _Turned(np.array(offsets, np.int64), phases, steps, turns, int(base))


def _by_tables(plan, grad, weight, out):
    """One group. grad : (N, OH, OW, O), out : (N, H, W, C), of which C / groups are written."""
    g, turns, tasks = plan.g, plan.turned, min(threads.tasks_for(plan.seconds), plan.units)
    turned = empty(turns.size, np.int32)
    tables = empty(tasks * g.cells * g.cell, np.float32)
    pixels = empty(2 * tasks * g.band * g.windows.width, np.int64)
    words = weight.reshape(-1)
    for of_phase in turns.turns:
        turn(0, turns.steps, 0, words, of_phase, POWERS, turned)
    signs, scratch = (turned, turns.offsets, turns.phases), (PATTERNS, tables, pixels)
    shares, arrays = parallel.shares(plan.units, tasks), (grad.reshape(-1), signs, scratch)
    parallel.share_out(_input_by_tables, shares, *arrays, out.reshape(-1), g)


@kernel(allocates=False)
def _input_by_tables(first, end, slot, grad, signs, scratch, out, g):
    """Bands first to end - 1, counted through all images."""
    of, (turned, offsets, phases), (patterns, tables, pixels) = g.windows, signs, scratch
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


def _by_masks(plan, grad, weight, out):
    """As `_by_tables`."""
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
