"""Copy images for the sign products: padded, split into groups, with table addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba.core import types

from tinybnn.kernels.machine.shuffles import store_nibble_pairs
from tinybnn.kernels.machine.simd import chosen, copy, inlined, subkernel
from tinybnn.kernels.machine.windows import Windows
from tinybnn.kernels.signs.bits import bits_from
from tinybnn.kernels.signs.tables import LookUps, Tables

if TYPE_CHECKING:
    from tinybnn.typing import Words


@subkernel
def pad(
    first: int, end: int, source: Words, workspace: Words, slot: int, arguments: tuple[Any, ...]
) -> int:
    """Copy the rows of images that some output pixels see, with padding and split into groups.

    Parameters
    ----------
    first, end : int
        Output pixels first to end - 1, numbered across all images.
    source : (...,) uint64
        The images, flat.
    workspace : (...,) uint64
        With room for ``image_stride`` words per image from ``slot`` on; for an even number of
        images if `LookUps.image_words` is 0.
    slot : int
        Index of the copy of the first of these images.
    arguments : tuple
        ``tuple(prepared.tables)``.

    Returns
    -------
    int
        ``base``: the copy of image n begins at ``workspace[base + n * image_stride]``.
    """
    return _prepare(first, end, source, workspace, slot, Tables(*arguments))


def _prepare(first, end, source, workspace, slot, tables):
    """Copy images for one of the methods, as `pad`."""
    prepare = _find_tables if tables.panels.dtype == np.uint8 else _copy_images
    return prepare(first, end, source, workspace, slot, tables)


@chosen(_prepare)
def _compiled_prepare(first, end, source, workspace, slot, tables):
    prepare = _find_tables if tables[0].dtype == types.uint8 else _copy_images
    return lambda first, end, source, workspace, slot, tables: prepare(
        first, end, source, workspace, slot, tables
    )


@inlined
def _copy_images(first, end, source, workspace, slot, tables):
    """Copy images with their padding, by groups; return the ``base`` of `pad`."""
    window, per_image = Windows(*tables.windows), len(tables.pixels)
    image, last = first // per_image, (end - 1) // per_image
    base = slot - image * tables.image_stride
    for n in range(image, last + 1):
        at, rows = base + n * tables.image_stride, _rows(first, end, n, window)
        for group in range(tables.groups):
            _pad_rows(rows, source, n, group, workspace, at + group * tables.group_stride, tables)
    return base


@inlined
def _rows(first, end, image, window):
    """Return the first row and the end row of an image that pixels first to end - 1 see."""
    per_image, span = (
        window.out_height * window.out_width,
        (window.kernel_height - 1) * window.row_dilation + 1,
    )
    top = max(first - image * per_image, 0) // window.out_width
    bottom = (min(end - image * per_image, per_image) - 1) // window.out_width
    return top * window.row_stride, bottom * window.row_stride + span


@inlined
def _pad_rows(rows, source, image, group, workspace, at, tables):
    """Write rows rows[0] to rows[1] - 1 of a padded image that begins at workspace[at]."""
    window, outside = Windows(*tables.windows), tables.outside
    words = len(outside) if tables.groups == 1 else (tables.channels + 63) // 64
    inside, border = window.width * len(outside), window.left * len(outside)  # words of a row
    for padded_y in range(rows[0], rows[1]):
        to, y = at + padded_y * (inside + 2 * border), padded_y - window.top
        if not 0 <= y < window.height:
            _fill(workspace, to, inside + 2 * border, outside)
            continue
        start = (image * window.height + y) * window.width * words
        _fill(workspace, to, border, outside)
        if tables.groups == 1:
            copy(source, start, workspace, to + border, inside)
        else:
            _copy_group(source, start, group, workspace, to + border, tables)
        _fill(workspace, to + border + inside, border, outside)


@inlined
def _fill(workspace, to, count, outside):
    """Write ``count`` words of padding pixels."""
    for pixel in range(to, to + count, len(outside)):
        for j in range(len(outside)):
            workspace[pixel + j] = outside[j]


@inlined
def _copy_group(source, start, group, workspace, to, tables):
    """Copy the channels of a group, moved to bit 0, of one row of an image."""
    window, group_words = Windows(*tables.windows), len(tables.outside)
    words = (tables.channels + 63) // 64
    group_channels = tables.channels // tables.groups
    for x in range(window.width):
        for j in range(group_words):
            first, count = group * group_channels + 64 * j, min(64, group_channels - 64 * j)
            workspace[to] = bits_from(source, start + x * words, first, count)
            to += 1


@inlined
def _find_tables(first, end, source, workspace, slot, tables):
    """Write the table addresses that `look_ups` reads for the words that the pixels see."""
    window, look_ups, stride = (
        Windows(*tables.windows),
        LookUps(*tables.look_ups),
        tables.image_stride,
    )
    step, words = 2, stride // 2
    image, last, base = first, end - 1, slot - first * stride
    if look_ups.image_words > 0:
        base = _copy_images(first, end, source, workspace, slot, tables)
        image, last, step = first // len(tables.pixels), (end - 1) // len(tables.pixels), 1
    for n in range(image, last + 1, step):
        at = base + n * stride
        if look_ups.image_words == 0:  # images of one pixel, two at a time
            neighbour = words if n < last else 0
            _write_places(source, n * words, words, neighbour, workspace, 4 * at)
            continue
        top, bottom = _rows(first, end, n, window)
        row_words = (window.width + 2 * window.left) * len(tables.outside)
        for group in range(tables.groups):
            start = group * tables.group_stride + top * row_words
            # Beyond a row the neighbour is some other word of the copy, whose result is not read.
            to = 4 * (at + look_ups.image_words) + 16 * start
            count = (bottom - top) * row_words
            _write_places(workspace, at + start, count, look_ups.neighbour, workspace, to)
    return base


@inlined
def _write_places(words, first, count, neighbour, workspace, to):
    """Write table addresses for ``count`` words, each paired with the word ``neighbour`` on.

    They begin at address ``to``; a word holds four addresses.
    """
    for i in range(count):
        at = first + i
        store_nibble_pairs(workspace, to + 16 * i, words, at, at + neighbour)
