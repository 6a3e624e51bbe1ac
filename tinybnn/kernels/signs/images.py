"""Copies of images for the kernels of products: padded, by groups, with the places of tables."""

from __future__ import annotations

import numpy as np

from tinybnn.kernels.machine.shuffles import store_nibble_pairs
from tinybnn.kernels.machine.simd import copy, inlined, subkernel
from tinybnn.kernels.machine.windows import Windows
from tinybnn.kernels.signs.bits import bits_from
from tinybnn.kernels.signs.tables import LookUps, Tables


@subkernel
def pad(first, end, source, workspace, slot, arguments):
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
    tables = Tables(*arguments)
    look_ups = LookUps(*tables.look_ups)
    if look_ups.count > 0 and look_ups.image_words == 0:
        return _find_tables_of_rows(first, end, source, workspace, slot, tables)
    of, per_image = Windows(*tables.windows), len(tables.pixels)
    span = (of.kernel_height - 1) * of.row_dilation + 1  # rows that an output row sees
    image, last = first // per_image, (end - 1) // per_image
    base = slot - image * tables.image_stride
    for n in range(image, last + 1):
        at = base + n * tables.image_stride
        rows = _rows(first, end, n, of, span)
        for group in range(tables.groups):
            _pad_rows(rows, source, n, group, workspace, at + group * tables.group_stride, tables)
        if look_ups.count > 0:
            for group in range(tables.groups):
                _find_tables(rows, workspace, at, group * tables.group_stride, tables)
    return base


@inlined
def _rows(first, end, image, of, span):
    """First row, and the one behind the last, that the pixels of an image among these see."""
    per_image = of.out_height * of.out_width
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
def _find_tables(rows, workspace, at, group_at, tables):
    """Write down the places of the tables that `look_ups` reads for the words of some rows.

    The rows are those of a group, which begins ``group_at`` words behind the beginning of the
    image's copy, workspace[at].
    """
    of, look_ups = Windows(*tables.windows), LookUps(*tables.look_ups)
    row_words = (of.width + 2 * of.left) * len(tables.outside)
    places, to = workspace.view(np.uint16), 4 * (at + look_ups.image_words)
    for i in range(group_at + rows[0] * row_words, group_at + rows[1] * row_words):
        # Beyond the row the neighbour is any word of the image's copy or of its places: not read.
        store_nibble_pairs(places, to + 16 * i, workspace, at + i, at + i + look_ups.neighbour)


@inlined
def _find_tables_of_rows(first, end, source, workspace, slot, tables):
    """The same for images of one pixel, without a copy: for the first two, the next two, ..."""
    places, words = workspace.view(np.uint16), tables.image_stride // 2
    base = slot - first * tables.image_stride
    for n in range(first, end, 2):
        to, at = 4 * (base + n * tables.image_stride), n * words
        neighbour = words if n + 1 < end else 0
        for i in range(at, at + words):
            store_nibble_pairs(places, to, source, i, i + neighbour)
            to += 16
    return base
