"""Gradient of a binary convolution or linear layer in its weight.

It is a product of floats and signs (`sign_gradients`): the gradient of the output times the signs
of the input. A sum runs over all pixels of all images. Each filter has a row of sums, one for each
weight, whose columns are the channels of each tap.

A few images at a time are copied with padding, so that each tap of a pixel is at a fixed distance.
Zeros around an image look like signs -1 there, so their contribution is corrected in advance
(`_beyond_the_image`).

For speed alone: `conv2d_weight_gradient_reference` is the plain NumPy version, and `tinybnn bench
train --profile` shows its share of a step.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn.kernels.floats import convolution
from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.checks import out_array
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import (
    FLOATS,
    add_first,
    inlined,
    kernel,
    load,
    splat_like,
    store,
    zeros,
)
from tinybnn.kernels.machine.windows import with_border
from tinybnn.kernels.signs.bits import (
    pack_reference,
    split_groups,
    unpack,
    unpack_reference,
    words_for,
)
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

_LIST = 2048  # pixels in a list
_TILE = 8  # filters whose lists are in use at a time
_INDEX_BYTES = 1 << 22  # size of the table indices of the input's signs kept at a time


def conv2d_weight_gradient(
    grad: ArrayLike,
    x: ArrayLike,
    geometry: Geometry,
    *,
    method: str | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Compute the gradient of a binary convolution in its weight: floats times signs.

    With the input pixel (y, x) that the tap (ky, kx) of output pixel (oy, ox) falls on,

        out[o, ky, kx, c] = sum over n, oy, ox of grad[n, oy, ox, o] * sign(x[n, y, x, c]).

    Parameters
    ----------
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    x : (N, H, W, words_for(C)) uint64
    geometry : Geometry
        From `geometry_of`.
    method : "lookup", "masked" or "float", optional
        Default: the fastest for this CPU and the share of zeros in ``grad``.
    out : (O, kh, kw, C / groups) float32, optional
        C-contiguous array for the result.

    Returns
    -------
    (O, kh, kw, C / groups) float32

    Raises
    ------
    ValueError
        If a dtype or a shape does not match, or the CPU cannot do ``method``.
    """
    name, (_, kh, kw, per_group) = "conv2d_weight_gradient", geometry.weight
    shape, (_, panels) = (*np.shape(grad)[:1], *geometry.output), _columns(kh * kw, per_group)
    grad, x = operands(
        name, grad=(grad, np.float32, shape), x=(x, np.uint64, (*shape[:1], *geometry.image_words))
    )
    columns = kh * kw * per_group
    method = choose_method(name, method, grad, "weight", per_group, columns, panels)
    out = out_array(name, out, geometry.weight)
    if out.size == 0 or grad.size == 0:
        out[...] = 0
    elif method == "float":
        _by_floats(grad, x, geometry, out)
    else:
        channels, groups = geometry.image[2], geometry.groups
        split = split_groups(x, channels, groups) if groups > 1 else x[:, :, :, None]
        for group in range(groups):
            plan = _plan(geometry, len(grad), group, method, _INDEX_BYTES)
            _weight_gradient(plan, grad, split[:, :, :, group], method, out[plan.filters])
    return out


def _by_floats(grad, x, geometry, out):
    signs, (stride, padding, *others) = unpack(x, geometry.image[2]), geometry.options
    if geometry.padding_mode == "ones":
        signs, padding = with_border(signs, padding, 1), (0, 0)
    sizes = geometry.weight[1:3], stride, padding, *others
    weight = convolution.conv2d_weight(signs, grad, *sizes)  # (O, C / groups, kh, kw)
    out[...] = weight.transpose(0, 2, 3, 1)


def conv2d_weight_gradient_reference(grad: FloatArray, x: Words, geometry: Geometry) -> FloatArray:
    """Compute :func:`conv2d_weight_gradient` in plain NumPy, in the dtype of ``grad``."""
    image = unpack_reference(x, geometry.image[2], grad.dtype)
    image = with_border(image, geometry.windows.padding, int(geometry.padding_mode == "ones"))
    out = empty(geometry.weight, grad.dtype)
    for ky, kx, seen in geometry.windows.views(image):  # (N, OH, OW, C)
        for o, c in geometry.group_slices():
            rows = grad[..., o].reshape(-1, o.stop - o.start)  # (N * OH * OW, O / groups)
            out[o, ky, kx] = rows.T @ seen[..., c].reshape(-1, c.stop - c.start)
    return out


def linear_weight_gradient(
    grad: ArrayLike,
    x: ArrayLike,
    features: int,
    *,
    method: str | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Compute the gradient of a binary linear layer in its weight: ``grad.T @ sign(x)``.

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
    geometry = geometry_of(features, grad.shape[3], (1, 1), (1, 1))
    return conv2d_weight_gradient(grad, x, geometry, method=method, out=out)[:, 0, 0]


# ------------------------------------------------------------------------------- images and borders


class _Weight(NamedTuple):
    """The numbers that the kernels need for some of the images."""

    pixels: int  # output pixels of all these images
    first_pixel: int  # in the batch
    filters: int  # of all groups
    first_filter: int
    taps: int
    group_channels: int
    tap_lanes: int  # columns of a tap: its channels, filled up to whole vectors
    lanes: int  # columns of all taps, filled up to whole panels
    fresh: bool  # whether no images have been added yet
    last: bool  # whether none follow


def _columns(taps, group_channels):
    """Return the columns of a tap (channels rounded up to whole vectors) and the panels of 64."""
    tap_lanes = -(-group_channels // FLOATS) * FLOATS
    return tap_lanes, -(-taps * tap_lanes // 64)


class _Part(NamedTuple):
    """Images that are processed together.

    Attributes
    ----------
    images : slice
    signs : tuple
        Addresses of their signs: for "lookup" a `SignLayout`, for "masked" the starts of output
        pixels, and the offsets of taps.
    g : _Weight
    """

    images: slice
    signs: tuple
    g: _Weight


class _Plan(NamedTuple):
    """Everything that does not depend on the contents of the arrays.

    Attributes
    ----------
    filters : slice
        Filters of the group.
    tap_lanes, lanes : int
        As in `_Weight`.
    parts : list of _Part
    padded : tuple of int or None
        Shape of the padded images of a part; None if x is read in place.
    outside : (words,) uint64
        A pixel of the padding.
    inside : tuple of slice
        Position of the images in padded ones.
    border : tuple
        See `_border`.
    seconds : float
        Estimated time of one core for a part.
    """

    filters: slice
    tap_lanes: int
    lanes: int
    parts: list
    padded: tuple | None
    outside: np.ndarray
    inside: tuple
    border: tuple
    seconds: float


@functools.lru_cache(maxsize=64)  # a layer in training needs its plan at each step
def _plan(geometry, images, group, method, most_bytes):
    """Plan one group of a convolution for ``images`` images."""
    window, (filters, kh, kw, per_group) = geometry.windows, geometry.weight
    words, group_filters = words_for(per_group), filters // geometry.groups
    tap_lanes, panels = _columns(kh * kw, per_group)
    lanes, (pixel, tap) = panels * 64, window.places(words)
    together = min(images, max(1, most_bytes // (len(pixel) * lanes // 4)))

    def signs(count):
        image_words = window.padded_size[0] * window.padded_size[1] * words
        starts = (np.arange(count)[:, None] * image_words + pixel).reshape(-1)
        if method == "masked":
            return starts.astype(np.int32), tap
        return lookup.sign_layout(starts, tap, per_group)

    parts, signs_of = [], {}
    for first in range(0, images, together):
        count = min(together, images - first)
        if count not in signs_of:
            signs_of[count] = signs(count)
        g = _Weight(
            count * len(pixel), first * len(pixel), filters, group * group_filters, kh * kw,
            per_group, tap_lanes, lanes, first == 0, first + count == images,
        )  # fmt: skip
        parts.append(_Part(slice(first, first + count), signs_of[count], g))
    copies = window.padding != (0, 0) or geometry.groups > 1
    ends = window.top + window.height, window.left + window.width
    return _Plan(
        slice(group * group_filters, (group + 1) * group_filters), tap_lanes, lanes, parts,
        (together, *window.padded_size, words) if copies else None,
        pack_reference(np.ones(per_group)) * np.uint64(geometry.padding_mode == "ones"),
        (slice(None), *map(slice, window.padding, ends)),
        _border(window) if geometry.padding_mode == "zeros" else ([], [], []),
        together * len(pixel) * kh * kw * per_group * group_filters / SPEED,
    )  # fmt: skip


def _border(window):
    """Find the output positions that fall on the padding.

    Returns
    -------
    inside : list of slice
        For each tap along the height: output rows whose tap is inside the image.
    rows, columns : list of (tap, slice)
        For taps along the height and the width: output positions before and behind the image.
    """
    axes = []
    for axis, size in enumerate(window.out_size):
        positions = window.positions(axis)
        firsts, ends = (
            (positions < 0).sum(0).tolist(),
            (positions < window.size[axis]).sum(0).tolist(),
        )
        beyond = [(tap, slice(first)) for tap, first in enumerate(firsts) if first]
        beyond += [(tap, slice(end, size)) for tap, end in enumerate(ends) if end < size]
        axes.append((list(map(slice, firsts, ends)), beyond))
    (inside, rows), (_, columns) = axes
    return inside, rows, columns


def _weight_gradient(plan, grad, x, method, out):
    """Compute one group. x : (N, H, W, words), out : (O / groups, kh, kw, C / groups)"""
    correction = _beyond_the_image(grad[..., plan.filters], *out.shape[1:3], plan.border)
    compute = _by_tables if method == "lookup" else _by_masks
    compute(plan, grad, x, correction, out)


def _images_of_parts(plan, x):
    """Yield each part of a plan with the words of its images, padded where necessary."""
    if plan.padded:
        padded = empty(plan.padded, np.uint64)
        padded[...] = plan.outside
    for part in plan.parts:
        words = x[part.images]
        if plan.padded:
            copy = padded[: len(words)]
            copy[plan.inside] = words
            words = copy
        yield part, words.reshape(-1)


def _beyond_the_image(grad, kh, kw, border):
    """Compute the correction for zero padding: (O, taps), added to each column of a tap.

    A zero is not a sign, but in the padded image a bit 0 stands in its place, a sign -1. What it
    subtracts is the same for all channels: the gradients of the output pixels whose tap falls on
    the padding.
    """
    (inside, rows, columns), filters = border, grad.shape[3]
    sums = np.zeros((kh, kw, filters), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        # Whole rows of output pixels, and some columns of the other rows.
        for ky, beyond in rows:
            sums[ky] += grad[:, beyond].sum((0, 1, 2))
        for kx, beyond in columns:
            row_sums = grad[:, :, beyond].sum((0, 2))  # (OH, O)
            for ky, rows_inside in enumerate(inside):
                sums[ky, kx] += row_sums[rows_inside].sum(0)
    return np.ascontiguousarray(sums.reshape(kh * kw, filters).T)


@inlined
def _begin(first, count, correction, sums, g):
    """Initialise rows of the result with the correction of their border."""
    for row in range(first, first + count):
        for tap in range(g.taps):
            at = row * g.lanes + tap * g.tap_lanes
            end = at + g.tap_lanes if tap < g.taps - 1 else (row + 1) * g.lanes
            sums[at:end] = correction[row * g.taps + tap]


# ------------------------------------------------------------------------------------ lookup tables


def _by_tables(plan, grad, x, correction, out):
    """Compute one group by look-ups, 16 filters side by side."""
    filters, taps = len(out), correction.shape[1]
    blocks = -(-filters // FLOATS)
    begin = np.zeros((taps, blocks * FLOATS), np.float32)
    begin[:, :filters] = correction.T
    first, step = plan.filters.start, grad.shape[3]
    if filters % FLOATS:  # the last vector reads beyond the group, and perhaps the array
        grad = with_zeros(grad[..., plan.filters], FLOATS)
        first, step = 0, grad.shape[3]
    tasks = min(threads.tasks_for(plan.seconds), blocks)
    tables = empty(tasks * lookup.STEPS * lookup.TABLE, np.float32)
    sums = empty(blocks * taps * plan.tap_lanes * FLOATS, np.float32)
    places = np.empty(tasks * FLOATS, np.int64)
    scratch, shares = (tables, sums, places), parallel.shares(blocks, tasks)
    for part, seen in _images_of_parts(plan, x):
        numbers = lookup.sign_indices(part.signs, seen, tasks)
        arrays = grad.reshape(-1), numbers, begin, scratch, out.reshape(-1)
        parallel.share_out(_weight_by_tables, shares, *arrays, (first, step, filters), part.g)


@kernel(allocates=False)
def _weight_by_tables(first, end, slot, grad, numbers, begin, scratch, out, layout, g):
    """Compute blocks first to end - 1 of 16 filters.

    ``layout`` is the index of the first filter in ``grad``, the filters of a pixel there, and the
    filters of the group.
    """
    (first_filter, step, filters), (tables, sums, places) = layout, scratch
    table, at_places = slot * lookup.STEPS * lookup.TABLE, slot * FLOATS
    tap_floats, row_floats = g.tap_lanes * FLOATS, g.taps * g.group_channels
    signs_of_tap = g.tap_lanes * lookup.STEPS // 4
    for block in range(first, end):
        at = block * g.taps * tap_floats
        if g.fresh:
            for tap in range(g.taps):
                correction = load(begin[tap], block * FLOATS)
                for column in range(g.tap_lanes):
                    store(sums, at + tap * tap_floats + column * FLOATS, correction)
        for chunk in range(0, g.pixels, lookup.CHUNK):
            gradient = (g.first_pixel + chunk) * step + first_filter + block * FLOATS
            count = min(lookup.CHUNK, g.pixels - chunk)
            steps = lookup.make_tables(grad, gradient, step, count, tables, table)
            signs = chunk // lookup.CHUNK * g.taps * signs_of_tap
            for tap in range(g.taps):
                lookup.add_looked_up(
                    tables, table, steps, numbers, signs + tap * signs_of_tap,
                    sums, at + tap * tap_floats, g.group_channels,
                )  # fmt: skip
        if g.last:
            for lane in range(FLOATS):
                row = block * FLOATS + lane
                places[at_places + lane] = row * row_floats if row < filters else -1
            for tap in range(g.taps):
                lookup.transpose_back(
                    sums, at + tap * tap_floats, g.group_channels,
                    out, places, at_places, tap * g.group_channels,
                )  # fmt: skip


# --------------------------------------------------------------------------------- masked additions


def _by_masks(plan, grad, x, correction, out):
    """Compute one group by masked additions."""
    # Sums are kept in rows of whole panels; if these have no unused columns, they are the result.
    filters, kh, kw, per_group = out.shape
    direct = plan.lanes == kh * kw * per_group
    rows = out if direct else empty((filters, plan.lanes), np.float32)
    tasks = min(threads.tasks_for(plan.seconds), max(1, filters // 4))
    size = _TILE * (_LIST + FLOATS)
    values, places = empty(tasks * size, np.float32), empty(tasks * size, np.int32)
    ends, totals = empty(tasks * _TILE, np.int64), empty(tasks * _TILE, np.float32)
    lists, shares = (values, places, ends, totals), parallel.shares(filters, tasks, 4)
    more = lists, correction.reshape(-1), rows.reshape(-1)
    for part, seen in _images_of_parts(plan, x):
        signs = seen, *part.signs
        parallel.share_out(_weight_by_masks, shares, grad.reshape(-1), signs, *more, part.g)
    if not direct:
        columns = rows[:, : kh * kw * plan.tap_lanes].reshape(filters, kh, kw, plan.tap_lanes)
        out[...] = columns[..., :per_group]


@kernel(allocates=False)
def _weight_by_masks(first, end, slot, grad, signs, lists, correction, sums, g):
    """Compute filters first to end - 1 of the group, each with a list of its nonzero gradients.

    A list holds values, and the starts of their pixels' words in ``x``.
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
