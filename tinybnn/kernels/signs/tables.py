"""What the kernels of products of signs read: the geometry and the weights, in tables."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np


class Tables(NamedTuple):
    """What the kernels read of prepared weights.

    Kernels are handed it as a plain tuple, ``tuple(tables)``, and begin with
    ``tables = Tables(*arguments)``: a plain tuple gets from Python into compiled code in a third of
    the time, 2 microseconds less, and no class stands in Numba's cache on disk.

    Everything is seen as a convolution of flat words: an output pixel sees the L words at
    ``first word of the pixel + taps``. So nothing but a table knows of stride, dilation and the
    width of the image, and a matrix product is the case of images of one pixel. Pixels are counted
    through all images: pixel i is pixel ``i % P`` of image ``i // P``, with P output pixels an
    image.

    The filters of a group are cut into panels, columns side by side that one pass over the words of
    a pixel serves, wide ones and a narrow one where that is enough for the rest. What a panel holds
    is up to the method that counts: `counting` or `look_ups`.

    Attributes
    ----------
    panels : (...,) uint64 or uint8
        All panels, one after the other: words to count the bits of, or nibbles to look up. Kernels
        are compiled for one dtype or the other.
    group_filters, group_columns : int
        Filters of a group, and these filled up to whole panels: column c of all panels has column c
        in ``constants``.
    cuts : (...,) int64
        Panels between which work may be shared out, the first and the end included: two threads
        must not write to one word of bits.
    taps : (L,) int64
        Where the words under a filter are, counted from the pixel's first word.
    pixels : (P,) int64
        Where the first word is that an output pixel sees, counted from the image's first.
    rows : (P,) int64
        Where an output pixel's row in ``constants`` starts.
    constants : (...,) int32
        A row for each border class (the pixels whose taps on the padding are the same). For sums
        ``base``, so that the sum is ``base - 2 * disagreements``; for bits ``limit``, so that the
        comparison is ``disagreements <= limit``. With ``LookUps.is_twofold`` they are for what is
        counted then: twice the disagreements, and the filter's zeros.
    flips : (columns / 16,) uint64
        For bits: of the up to 32 channels from column 16 j on that are compared at once, those
        whose comparison is turned round.
    filters : int
        Output channels.
    group_stride, image_stride : int
        Words between two groups of an image and between two images, as the kernels see them.
    copies : bool
        Whether images have to be copied, padded and by groups, before they are read.
    together : int
        Number of images that are copied at a time.
    channels, groups : int
        Of the input.
    windows : tuple of int
        The `Windows`, as a plain tuple.
    outside : (words_for(channels // groups),) uint64
        What a pixel of the padding holds.
    look_ups : tuple
        The `LookUps`, as a plain tuple; without any look-up where bits are counted.
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
    """What `look_ups` needs besides.

    Attributes
    ----------
    entries : (4096,) uint8
        For each pair of nibbles of two pixels a table of 16: how many of its bits each nibble of a
        filter differs in, from the first in the lower half of a byte, from the second in the upper.
    segments : (2 n,) int64
        Look-ups that follow one another: the first one's place, from that of the pixel, and their
        number; then the next ones' place and number, and so on.
    parts : (m,) int64
        Where in ``segments`` look-ups begin that bytes can count; last, the end.
    count : int
        Look-ups of a pixel.
    image_words : int
        Words of an image's copy, behind which the places of its tables lie. 0 if images of one
        pixel are read as they are: then the places of the first and second lie at the beginning.
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
    """For each panel: its first column, its width, its group, its first filter and their number.

    The last panel of a group has as many columns as it needs, rounded up to ``narrow`` times a
    power of two; the others are ``wide``. With the number of all columns.
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
