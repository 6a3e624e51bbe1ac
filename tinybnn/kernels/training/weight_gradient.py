"""Gradient of a binary convolution or linear layer in its weight.

It is a product of floats with signs (`sign_gradients`), of the gradient of the output with the
signs of the input. A sum runs over all pixels of all images, and each filter has one for every
weight: a row of sums, whose columns are the channels of each tap.

A few images at a time stand in a padded copy, in which each tap of a pixel is a fixed number of
words away from it. Zeros around an image cannot be told from signs -1 there, so what these add
is put right beforehand (`_beyond_the_image`).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from tinybnn.kernels.floats import convolution
from tinybnn.kernels.machine import parallel
from tinybnn.kernels.machine.checks import (
    check_padding_mode,
    check_row,
    check_words,
    out_array,
)
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import FLOATS, add_first, inlined, kernel, splat_like, zeros
from tinybnn.kernels.machine.windows import pair, windows, with_border
from tinybnn.kernels.signs.bits import (
    pack_reference,
    split_groups,
    unpack,
    unpack_reference,
    words_for,
)
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

_CHUNK = 8  # steps whose tables are in use at a time
_LIST = 2048  # pixels of which a list is made at a time
_TILE = 8  # filters that are in use at a time
_TURNED_BYTES = 1 << 22  # turned signs of the input that are kept at a time


def conv2d_weight_gradient(
    grad,
    x,
    channels,
    kernel_size,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
    method=None,
    out=None,
):
    """Gradient of a binary convolution in its weight: floats times the signs of the input.

    With the input pixel (y, x) that the tap (ky, kx) of output pixel (oy, ox) falls on,

        out[o, ky, kx, c] = sum over n, oy, ox of grad[n, oy, ox, o] * sign(x[n, y, x, c]).

    Parameters
    ----------
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    x : (N, H, W, words_for(channels)) uint64
    channels : int
        C.
    kernel_size : (int, int)
        kh, kw.
    stride, padding, dilation : (int, int)
        Along height and width.
    groups : int
        A divisor of C and of O.
    padding_mode : "zeros" or "ones"
        What stands outside the image: nothing that adds to the sum, or +1.
    method : "lookup", "masked" or "float", optional
        By default what suits the CPU and the share of zeros in ``grad``.
    out : (O, kh, kw, C // groups) float32, optional
        C-contiguous, to be written to.

    Returns
    -------
    (O, kh, kw, C // groups) float32

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the CPU cannot do ``method``.
    """
    name = "conv2d_weight_gradient"
    x = check_words(name, "x", x, 4)
    kernel_size = pair(name, "kernel_size", kernel_size, 1)
    grad, geometry = check_geometry(
        name, grad, channels, groups, size=x.shape[1:3], kernel_size=kernel_size, stride=stride,
        padding=padding, dilation=dilation,
    )  # fmt: skip
    check_row(name, "x", x, "channels", channels)
    if len(x) != len(grad):
        raise ValueError(f"{name}: x has {len(x)} images, grad has {len(grad)}")
    check_padding_mode(name, padding_mode)
    out = out_array(name, out, (grad.shape[3], *kernel_size, geometry.group_channels))
    taps, _, panels = _columns(geometry)
    per_group = geometry.group_channels
    method = choose_method(name, method, grad, per_group, taps * per_group, panels)
    if out.size == 0 or grad.size == 0:
        out[...] = 0
        return out
    if method == "float":
        signs, (stride, padding, *others) = unpack(x, channels), geometry.options
        if padding_mode == "ones":
            signs, padding = with_border(signs, padding, 1), (0, 0)
        found = convolution.conv2d_weight(signs, grad, kernel_size, stride, padding, *others)
        out[...] = found.transpose(0, 2, 3, 1)  # (O, C / groups, kh, kw) there
        return out
    split = split_groups(x, channels, groups) if groups > 1 else x[:, :, :, None]
    for group, (o, _) in enumerate(geometry.group_slices(len(out))):
        _weight_gradient(grad, split[:, :, :, group], geometry, o, padding_mode, method, out[o])
    return out


def conv2d_weight_gradient_reference(
    grad,
    x,
    channels,
    kernel_size,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
):
    """What :func:`conv2d_weight_gradient` computes, in plain NumPy, in the dtype of ``grad``."""
    of = windows(
        "conv2d_weight_gradient_reference", x.shape[1:3], kernel_size, stride, padding, dilation
    )
    geometry, filters = Geometry(channels, groups, of), grad.shape[3]
    image = with_border(
        unpack_reference(x, channels, grad.dtype), padding, int(padding_mode == "ones")
    )
    out = empty((filters, *kernel_size, channels // groups), grad.dtype)
    for ky, kx, seen in of.views(image):  # (N, OH, OW, C)
        for o, c in geometry.group_slices(filters):
            rows = grad[..., o].reshape(-1, filters // groups)  # (N*OH*OW, O/groups)
            out[o, ky, kx] = rows.T @ seen[..., c].reshape(-1, channels // groups)
    return out


def linear_weight_gradient(grad, x, features, *, method=None, out=None):
    """Gradient of a binary linear layer in its weight: ``grad.T @ sign(x)``.

    Parameters
    ----------
    grad : (N, O) float32
    x : (N, words_for(features)) uint64
    features : int
        K, the inputs of the layer.
    method, out
        As in `conv2d_weight_gradient`; ``out`` is (O, K) float32.

    Returns
    -------
    (O, K) float32

    Raises
    ------
    ValueError
        As `conv2d_weight_gradient`.
    """
    name = "linear_weight_gradient"
    grad, x = as_image(name, "grad", grad), as_image(name, "x", x)
    out = None if out is None else as_image(name, "out", out)
    result = conv2d_weight_gradient(grad, x, features, (1, 1), method=method, out=out)
    return result[:, 0, 0]


# ------------------------------------------------------------------------------- images and borders


class _Weight(NamedTuple):
    """The numbers that the kernels for the gradient in the weight need, for some of the images."""

    pixels: int  # of the output, of all these images
    first_pixel: int  # in the batch
    filters: int  # of all groups
    first_filter: int
    taps: int
    group_channels: int
    tap_lanes: int  # columns of a tap: its channels, filled up to whole vectors
    lanes: int  # columns of all taps, filled up to whole panels
    fresh: bool  # whether no images have been added yet


def _columns(geometry):
    """Taps; columns of a tap, its channels filled up to whole vectors; panels of all columns."""
    taps = geometry.windows.taps
    tap_lanes = -(-geometry.group_channels // FLOATS) * FLOATS
    return taps, tap_lanes, -(-taps * tap_lanes // LANES)


class _Plan(NamedTuple):
    """All that does not depend on what the arrays hold.

    Attributes
    ----------
    outside : (words,) uint64
        A pixel of the padding.
    tap_lanes, lanes : int
        As in `_Weight`.
    taps : (kh * kw,) int64
        Where the words of a tap are, from those of the output pixel.
    parts : tuple of (slice, starts)
        Images that are worked on together, and where the words of their output pixels begin: int64,
        filled up to whole steps by repeating the last, for "lookup" (tables hold zeros there, any
        signs will do), int32 for "masked".
    padded : tuple of int
        Shape of as many padded images.
    products : int
        Of such a part.
    """

    outside: np.ndarray
    tap_lanes: int
    lanes: int
    taps: np.ndarray
    parts: tuple
    padded: tuple
    products: int


@functools.lru_cache(maxsize=64)  # a layer in training needs its plan at each step
def _plan(geometry, images, filters, padding_mode, method, most_bytes):
    """The plan for one group of a convolution, for so many images and filters of the group."""
    of, per_group = geometry.windows, geometry.group_channels
    words, (height, width) = words_for(per_group), of.padded_size
    outside = pack_reference(np.ones(per_group)) * np.uint64(padding_mode == "ones")
    taps, tap_lanes, panels = _columns(geometry)
    lanes, (pixel, tap) = panels * LANES, of.places(words)

    image_bytes = len(pixel) * lanes // 8
    together = min(images, max(1, most_bytes // image_bytes))

    def starts(some):
        found = (np.arange(some)[:, None] * (height * width * words) + pixel).reshape(-1)
        if method == "masked":
            return found.astype(np.int32)
        return np.append(found, np.full(-len(found) % STEP, found[-1]))

    *firsts, last = range(0, images, together)
    whole = starts(together)
    parts = [(slice(first, first + together), whole) for first in firsts]
    parts.append((slice(last, images), starts(images - last)))
    return _Plan(
        outside, tap_lanes, lanes, tap, tuple(parts), (together, height, width, words),
        together * len(pixel) * taps * per_group * filters,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _shares(filters, tasks):
    """Filters by fours, as rows are computed."""
    return np.minimum(4 * parallel.shares(-(-filters // 4), tasks), filters)


def _weight_gradient(grad, x, geometry, filters, padding_mode, method, out):
    """One group. x : (N, H, W, words), filters : slice, out : (O/groups, kh, kw, C/groups)."""
    of, per_group, taps = geometry.windows, geometry.group_channels, geometry.windows.taps
    plan = _plan(geometry, len(grad), len(out), padding_mode, method, _TURNED_BYTES)
    correction = _beyond_the_image(grad[..., filters], geometry, padding_mode)  # (O/groups, taps)

    # Sums are kept in rows of whole panels; those of whole channels are the result itself.
    lanes = plan.lanes
    direct = lanes == taps * per_group
    rows = out if direct else empty((len(out), lanes), np.float32)
    shares = _shares(len(out), min(tasks_for_products(plan.products), -(-len(out) // 4)))
    copies = of.padding != (0, 0) or not x.flags.c_contiguous
    if copies:
        padded = empty(plan.padded, np.uint64)
        padded[...] = plan.outside
    flat, sums = grad.reshape(-1), rows.reshape(-1)
    for images, starts in plan.parts:
        seen = x[images]
        if copies:
            copy = padded[: len(seen)]
            copy[:, of.top : of.top + of.height, of.left : of.left + of.width] = seen
            seen = copy
        g = _Weight(
            len(seen) * math.prod(of.out_size), images.start * math.prod(of.out_size),
            grad.shape[3], filters.start, taps, per_group, plan.tap_lanes, lanes,
            images.start == 0,
        )  # fmt: skip
        more = flat, seen.reshape(-1), starts, plan.taps, correction.reshape(-1), sums, g
        _add_by_tables(shares, *more) if method == "lookup" else _add_by_masks(shares, *more)
    if not direct:
        columns = rows[:, : taps * plan.tap_lanes].reshape(*out.shape[:3], plan.tap_lanes)
        out[...] = columns[..., :per_group]


def _beyond_the_image(grad, geometry, padding_mode):
    """What makes padding with zeros exact: (O, taps), to be added to each column of a tap.

    A zero is no sign, but in the padded image a bit 0 stands in its place, a sign -1. What it
    subtracts is the same for all channels: the gradients of the output pixels whose tap falls on
    the padding.
    """
    (kh, kw), filters = geometry.windows.kernel_size, grad.shape[3]
    sums = np.zeros((kh, kw, filters), np.float32)
    if padding_mode == "ones" or geometry.windows.padding == (0, 0):
        return sums.reshape(filters, kh * kw)
    rows, columns = (_bounds(geometry.windows, axis) for axis in range(2))
    with np.errstate(over="ignore", invalid="ignore"):
        # Whole rows of output pixels, and of the others those in some columns.
        for ky, (top, bottom) in enumerate(rows):
            sums[ky] = _sum(grad[:, :top], (0, 1, 2)) + _sum(grad[:, bottom:], (0, 1, 2))
        for kx, (left, right) in enumerate(columns):
            beyond = _sum(grad[:, :, :left], (0, 2)) + _sum(grad[:, :, right:], (0, 2))
            for ky, (top, bottom) in enumerate(rows):  # beyond : (OH, O)
                sums[ky, kx] += _sum(beyond[top:bottom], 0)
    return np.ascontiguousarray(sums.reshape(kh * kw, filters).T)


def _bounds(of, axis):
    """First and last + 1 output position inside the image, for each tap along an axis."""
    positions = of.positions(axis)
    firsts, ends = (positions < 0).sum(0), (positions < of.size[axis]).sum(0)
    return list(zip(firsts.tolist(), ends.tolist(), strict=True))


def _sum(array, axes):
    return array.sum(axis=axes, dtype=np.float32)


@inlined
def _begin(first, count, correction, sums, g):
    """The rows of the result before anything is added: the correction of their border."""
    for row in range(first, first + count):
        for tap in range(g.taps):
            at = row * g.lanes + tap * g.tap_lanes
            end = at + g.tap_lanes if tap < g.taps - 1 else (row + 1) * g.lanes
            sums[at:end] = correction[row * g.taps + tap]


# ------------------------------------------------------------------------------------ lookup tables


@functools.lru_cache(maxsize=256)
def _turned_places(taps, tap_lanes):
    """Where the vectors of a pixel's signs come from and go to, for `turn`.

    Returns
    -------
    sources : (taps, n) int64
        Word of the tap.
    shifts : (taps * n,) uint64
    places : (taps * n,) int64
    """
    channel = np.arange(0, tap_lanes, FLOATS)
    shape = taps, len(channel)
    lane = np.arange(taps)[:, None] * tap_lanes + channel
    places = lane // LANES * _CHUNK * LANES + lane % LANES
    shifts = np.broadcast_to(channel % 64, shape).reshape(-1).astype(np.uint64)
    return np.broadcast_to(channel // 64, shape), shifts, places.reshape(-1)


_OFFSETS = np.arange(_CHUNK) * STEP_FLOATS


def _add_by_tables(shares, grad, x, starts, taps, correction, sums, g):
    """Turn the signs of some images, then add their part of the gradient."""
    steps = -(-g.pixels // STEP)
    chunks = -(-steps // _CHUNK)
    words, shifts, places = _turned_places(g.taps, g.tap_lanes)
    turned = empty(chunks * _CHUNK * g.lanes, np.int32)
    sources = (taps[:, None] + words).reshape(-1)
    turning = Turning(starts, sources, shifts, places, _CHUNK, _CHUNK * g.lanes, LANES)
    by_steps = parallel.shares(steps, min(len(shares), steps))
    parallel.share_out(turn, by_steps, x, turning, POWERS, turned)
    tables = empty(len(shares) * _TILE * _CHUNK * STEP_FLOATS, np.float32)
    rows = empty(2 * len(shares) * _TILE, np.int64)
    scratch = tables, rows, _OFFSETS, PATTERNS
    parallel.share_out(_weight_by_tables, shares, grad, turned, scratch, correction, sums, g)


@kernel(allocates=False)
def _weight_by_tables(first, end, slot, grad, turned, scratch, correction, sums, g):
    """Filters first to end - 1 of the group."""
    tables, rows, offsets, patterns = scratch
    size = _CHUNK * STEP_FLOATS
    for tile in range(first, end, _TILE):
        filters = min(_TILE, end - tile)
        if g.fresh:
            _begin(tile, filters, correction, sums, g)
        for r in range(filters):
            rows[2 * (slot * _TILE + r)] = (slot * _TILE + r) * size
            rows[2 * (slot * _TILE + r) + 1] = (tile + r) * g.lanes
        for chunk in range(0, g.pixels, _CHUNK * STEP):
            pixels = min(_CHUNK * STEP, g.pixels - chunk)
            steps = (pixels + STEP - 1) // STEP
            for pixel in range(0, steps * STEP, 4):  # a cache line of a pixel has 16 filters
                at = (g.first_pixel + chunk + pixel) * g.filters + g.first_filter + tile
                for r in range(filters):
                    to = (slot * _TILE + r) * size + pixel // 4 * FLOATS
                    count = min(max(pixels - pixel, 0), 4)
                    make_tables(
                        grad, at + r, count, g.filters, patterns, tables, to, np.int64(FLOATS)
                    )
            product(
                Rows(rows, 2 * slot * _TILE, filters), Tables(tables, offsets, np.int64(0), steps),
                Signs(turned, chunk // STEP * g.lanes, np.int64(_CHUNK * LANES)),
                Sums(sums, g.lanes, np.bool_(True)),
            )  # fmt: skip


# --------------------------------------------------------------------------------- masked additions


def _add_by_masks(shares, grad, x, starts, taps, correction, sums, g):
    """Add the part of the gradient that comes from some images."""
    tasks, size = len(shares), _TILE * (_LIST + FLOATS)
    values, places = empty(tasks * size, np.float32), empty(tasks * size, np.int32)
    ends, totals = empty(tasks * _TILE, np.int64), empty(tasks * _TILE, np.float32)
    lists, signs = (values, places, ends, totals), (x, starts, taps)
    parallel.share_out(_weight_by_masks, shares, grad, signs, lists, correction, sums, g)


@kernel(allocates=False)
def _weight_by_masks(first, end, slot, grad, signs, lists, correction, sums, g):
    """Filters first to end - 1 of the group: each with a list of its gradients that are not zero.

    A list holds values, and where the words of the pixel begin in ``x``.
    """
    (x, starts, taps), (values, places, ends, totals) = signs, lists
    words, at = (g.group_channels + 63) // 64, slot * _TILE
    for tile in range(first, end, _TILE):
        filters = min(_TILE, end - tile)
        if g.fresh:
            _begin(tile, filters, correction, sums, g)
        for chunk in range(0, g.pixels, _LIST):
            for r in range(filters):
                ends[at + r], totals[at + r] = (at + r) * (_LIST + FLOATS), 0
            end_of_list = min(chunk + _LIST, g.pixels)
            for pixel in range(chunk, end_of_list, FLOATS):  # cache lines hold several filters
                count = min(FLOATS, end_of_list - pixel)
                source = (g.first_pixel + pixel) * g.filters + g.first_filter + tile
                for r in range(filters):
                    ends[at + r], more_of_all = list_nonzero(
                        grad, source + r, count, g.filters, starts, pixel, values, places,
                        ends[at + r],
                    )  # fmt: skip
                    totals[at + r] += more_of_all
            for r in range(filters):
                minus, row = splat_like(totals[at + r], zeros(64)), (at + r) * (_LIST + FLOATS)
                for tap in range(g.taps):
                    for word in range(0, words, 2):
                        more = min(1, words - 1 - word)
                        low, high = add_listed(
                            values, places, row, ends[at + r], x, taps[tap] + word, more,
                            (zeros(64), zeros(64)),
                        )  # fmt: skip
                        to = (tile + r) * g.lanes + tap * g.tap_lanes + 64 * word
                        count = g.tap_lanes - 64 * word
                        add_first(sums, to, low + low - minus, count)
                        if more:
                            add_first(sums, to + 64, high + high - minus, count - 64)
