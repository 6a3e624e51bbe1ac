"""Tables that the kernels of sign products read: the geometry and the weights."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np


class Tables(NamedTuple):
    """Prepared weights and geometry as the kernels read them.

    Kernels take it as a plain tuple, ``tuple(tables)``, and begin with
    ``tables = Tables(*arguments)``. A plain tuple crosses from Python into compiled code in a third
    of the time, 2 microseconds less, and keeps classes out of Numba's cache on disk.

    Every product is a convolution of flat words: an output pixel sees the L words at
    ``first word of the pixel + taps``. So only the tables know stride, dilation and image width,
    and a matrix product is the case of images of one pixel. Pixels are numbered across all images:
    pixel i is pixel ``i % P`` of image ``i // P``, with P output pixels per image.

    The filters of a group are cut into panels: adjacent columns that one pass over the words of a
    pixel computes. They are wide, with a narrow one for the rest where that suffices. The method
    that counts, `counting`, `counting_bytes` or `look_ups`, defines the content of a panel.

    Attributes
    ----------
    panels : (...,) uint64, int8 or uint8
        All panels, one after the other: words to count the bits of, the same as bytes, or nibbles
        to look up. The dtype tells the method, and kernels are compiled for each.
    group_filters, group_columns : int
        Filters of a group, and their number rounded up to whole panels. Column c of all panels has
        column c of ``constants``.
    cuts : (...,) int64
        Panels at which work may be divided, including the first and the end: two threads must not
        write to the same word of bits.
    taps : (L,) int64
        Offsets of the words under a filter from the pixel's first word.
    pixels : (P,) int64
        Offset of the first word that an output pixel sees from the start of the image.
    rows : (P,) int64
        Start of an output pixel's row in ``constants``.
    constants : (...,) int32
        One row per border class (the pixels with the same taps on the padding). For sums, ``base``
        of ``sum = base - 2 * disagreements``; for bits, ``limit`` of ``disagreements <= limit``.
        With ``LookUps.is_twofold`` they refer to what is counted then: twice the disagreements,
        plus the zeros of the filter.
    flips : (columns / 16,) uint64
        For bits: word j has a 1 for each of the up to 32 channels from column 16 j on whose
        comparison is inverted.
    filters : int
        Output channels.
    group_stride, image_stride : int
        Words between two groups of an image and between two images, as the kernels see them.
    copies : bool
        Whether images have to be copied, padded and split into groups, before they are read.
    together : int
        Number of images copied at a time.
    channels, groups : int
        Input channels and groups.
    windows : tuple of int
        The `Windows`, as a plain tuple.
    outside : (words_for(channels // groups),) uint64
        Content of a padding pixel.
    look_ups : tuple
        The `LookUps`, as a plain tuple; without look-ups where bits are counted.
    """

    panels: np.ndarray
    group_filters: int
    group_columns: int
    cuts: np.ndarray
    taps: np.ndarray
    pixels: np.ndarray
    rows: np.ndarray
    constants: np.ndarray
    flips: np.ndarray
    filters: int
    group_stride: int
    image_stride: int
    copies: bool
    together: int
    channels: int
    groups: int
    windows: tuple[int, ...]
    outside: np.ndarray
    look_ups: tuple[Any, ...]


class LookUps(NamedTuple):
    """The additional tables of `look_ups`.

    Attributes
    ----------
    entries : (4096,) uint8
        For each pair of nibbles of two pixels a table of 16: the number of bits in which each
        nibble of a filter differs, from the first in the lower half of a byte, from the second in
        the upper half.
    segments : (2 n,) int64
        Runs of contiguous look-ups: the first one's offset from the pixel's address, and their
        number; then the next run's offset and number, and so on.
    parts : (m,) int64
        Indices in ``segments`` at which a part of look-ups begins whose counts fit bytes; last, the
        end.
    count : int
        Look-ups per pixel.
    image_words : int
        Words of an image's copy; the addresses of its tables follow it. 0 if images of one pixel
        are read in place: then the addresses for the first and second image lie at the beginning.
    neighbour : int
        Words between the two pixels of a pair.
    is_twofold : bool
        For ternary weights, which are half the sum of two rows of signs: the disagreements of both
        rows are counted.
    """

    entries: np.ndarray
    segments: np.ndarray
    parts: np.ndarray
    count: int
    image_words: int
    neighbour: int
    is_twofold: bool


@functools.lru_cache(maxsize=256)
def panels(
    groups: int, group_filters: int, wide: int, narrow: int
) -> tuple[tuple[tuple[int, int, int, int, int], ...], int]:
    """List the panels, and count all columns.

    The last panel of a group has as many columns as it needs, rounded up to ``narrow`` times a
    power of two; the others are ``wide``.

    Returns
    -------
    table : tuple
        For each panel (first column, width, group, first filter, number of filters).
    columns : int
        Columns of all panels.
    """
    table, column = [], 0
    for group in range(groups):
        for first in range(0, group_filters, wide):
            count, width = min(wide, group_filters - first), narrow
            while width < count:
                width *= 2
            table.append((column, width, group, group * group_filters + first, count))
            column += width
    return tuple(table), column
