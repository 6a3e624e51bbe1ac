"""Copies of images for the kernels of products: padded, by groups, with the places of tables."""

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
        Output pixels first to end - 1, counted through all images; all pixels of an image need all
        of its rows.
    source : (...,) uint64
        The images.
    workspace : (...,) uint64
        Has room for ``image_stride`` words an image from ``slot`` on; for an even number of images
        if `LookUps.image_words` is 0.
    slot : int
        Where the copy of the first of these images begins.
    arguments : tuple
        The tables of the `Prepared`.

    Returns
    -------
    int
        ``base``: the copy of image n begins at ``workspace[base + n * image_stride]``.
    """
    return _prepare(first, end, source, workspace, slot, Tables(*arguments))


def _prepare(first, end, source, workspace, slot, tables):
    """What `pad` does, for one of the methods."""
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
    of, per_image = Windows(*tables.windows), len(tables.pixels)
    image, last = first // per_image, (end - 1) // per_image
    base = slot - image * tables.image_stride
    for n in range(image, last + 1):
        at, rows = base + n * tables.image_stride, _rows(first, end, n, of)
        for group in range(tables.groups):
            _pad_rows(rows, source, n, group, workspace, at + group * tables.group_stride, tables)
    return base


@inlined
def _rows(first, end, image, of):
    """First row, and the one behind the last, that the pixels of an image among these see."""
    per_image, span = of.out_height * of.out_width, (of.kernel_height - 1) * of.row_dilation + 1
    top = max(first - image * per_image, 0) // of.out_width
    bottom = (min(end - image * per_image, per_image) - 1) // of.out_width
    return top * of.row_stride, bottom * of.row_stride + span


@inlined
def _pad_rows(rows, source, image, group, workspace, at, tables):
    """Rows rows[0] to rows[1] - 1 of a padded image that begins at workspace[at]."""
    of, outside = Windows(*tables.windows), tables.outside
    words = len(outside) if tables.groups == 1 else (tables.channels + 63) // 64
    inside, border = of.width * len(outside), of.left * len(outside)  # words of a row
    for padded_y in range(rows[0], rows[1]):
        to, y = at + padded_y * (inside + 2 * border), padded_y - of.top
        if not 0 <= y < of.height:
            _fill(workspace, to, inside + 2 * border, outside)
            continue
        start = (image * of.height + y) * of.width * words
        _fill(workspace, to, border, outside)
        if tables.groups == 1:
            copy(source, start, workspace, to + border, inside)
        else:
            _copy_group(source, start, group, workspace, to + border, tables)
        _fill(workspace, to + border + inside, border, outside)


@inlined
def _fill(workspace, to, count, outside):
    """Pixels of padding on ``count`` words."""
    for pixel in range(to, to + count, len(outside)):
        for j in range(len(outside)):
            workspace[pixel + j] = outside[j]


@inlined
def _copy_group(source, start, group, workspace, to, tables):
    """The channels of a group, moved to bit 0, of a row of an image."""
    of, group_words = Windows(*tables.windows), len(tables.outside)
    words = (tables.channels + 63) // 64
    group_channels = tables.channels // tables.groups
    for x in range(of.width):
        for j in range(group_words):
            first, count = group * group_channels + 64 * j, min(64, group_channels - 64 * j)
            workspace[to] = bits_from(source, start + x * words, first, count)
            to += 1


@inlined
def _find_tables(first, end, source, workspace, slot, tables):
    """Write down the places of the tables that `look_ups` reads for the words that pixels see."""
    of, look_ups, stride = Windows(*tables.windows), LookUps(*tables.look_ups), tables.image_stride
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
        top, bottom = _rows(first, end, n, of)
        row_words = (of.width + 2 * of.left) * len(tables.outside)
        for group in range(tables.groups):
            start = group * tables.group_stride + top * row_words
            # Beyond a row the neighbour is any word of the image's copy or of its places: not read.
            to = 4 * (at + look_ups.image_words) + 16 * start
            count = (bottom - top) * row_words
            _write_places(workspace, at + start, count, look_ups.neighbour, workspace, to)
    return base


@inlined
def _write_places(words, first, count, neighbour, workspace, to):
    """Places of the tables of ``count`` words, each with the one ``neighbour`` words further on.

    They begin with place ``to``, four of which are a word.
    """
    for i in range(count):
        at = first + i
        store_nibble_pairs(workspace, to + 16 * i, words, at, at + neighbour)
