"""Arithmetic on packed signs: matrix product and convolution.

Two signs multiply to +1 when they agree and to -1 when they differ, so the dot product of K signs
is (number of agreements) - (number of disagreements) = K - 2 * disagreements, and 64 disagreements
at a time are counted by one exclusive or and one population count::

    dot(a, b) = K - 2 * popcount(a ^ b)

(Courbariaux et al. 2016, arXiv:1602.02830; Rastegari et al. 2016, XNOR-Net,
arXiv:1603.05279.) K is the true length: the tails of both rows are 0, agree, and add
no disagreement.

A ternary weight, -1, 0 or +1, takes a second bit, its mask, which is 0 where the weight is. Where
``m`` is the mask of ``b``, and so popcount(m) the number of terms::

    dot(a, b) = popcount(m) - 2 * popcount((a ^ b) & m)

Each function has a twin, ``*_reference``, that computes the same in plain NumPy.

Product and convolution are one kernel, in two steps, for programs that use the same weights again
and again:

1. `prepare_matmul` or `prepare_conv2d` lays the weights out once and makes the tables the kernel
   needs. With ``thresholds`` a batch norm and a sign follow (see `thresholds`) and the kernel
   writes bits: the sums stay in registers, no array of them exists.
2. `run` computes. Kernels in other files, which go on with the sums while they are in cache, call
   `sums_of` instead.

`xnor_matmul` and `xnor_conv2d` do both in one call.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numba import types
from numba.core.extending import overload

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.checks import (
    check_groups,
    check_padding_mode,
    check_row,
    check_terms,
    check_vector,
    check_width,
    check_words,
    out_array,
)
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import (
    WORDS,
    all_ones,
    at_most,
    call_llvm,
    copy,
    everywhere,
    inlined,
    interleave,
    kernel,
    load_like,
    popcount,
    store,
    store_first,
    zero_counts,
)
from tinybnn.kernels.machine.threads import tasks_for
from tinybnn.kernels.machine.tiles import compile_rows, four
from tinybnn.kernels.machine.windows import Windows, windows, with_border
from tinybnn.kernels.signs.bits import (
    bits_from,
    from_bytes,
    pack_reference,
    split_groups_reference,
    unpack_reference,
    words_for,
)

_ALL_BITS = np.uint64(2**64 - 1)

WIDE, NARROW = 4 * WORDS, 2 * WORDS  # columns of a panel
_PART = 256  # pixels that pass through all panels before the next ones: their words stay in cache
_NEAR = 3072  # words of panels (24 KB) that stay in the nearest cache
_SPEED = 2.5e12  # products of signs a second, of a fast core

# ---------------------------------------------------------------------------------- matrix product


def xnor_matmul(a, b, count, mask=None, dtype=np.int32):
    """Dot products of all rows of ``a`` with all rows of ``b``: ``a @ b.T`` on signs.

    Parameters
    ----------
    a : (M, W) uint64
    b : (N, W) uint64
        At least words_for(count) words a row. Bits that are no signs, at the tail or between parts
        that are padded to whole words (pixels, say), are 0 on both sides and do not count.
    count : int
        K, the number of signs a row.
    mask : (N, W) uint64, optional
        1 where ``b`` is not 0, for ternary ``b``.
    dtype : int32 or float32
        Of the sums, which float32 holds exactly below 2**24.

    Returns
    -------
    (M, N) of ``dtype``
        ``K - 2 * popcount(a[i] ^ b[j])``; with mask
        ``popcount(mask[j]) - 2 * popcount((a[i] ^ b[j]) & mask[j])``.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or ``count`` is not positive or above 2**31 - 1.
    """
    name = "xnor_matmul"
    a, b = check_words(name, "a", a, 2), check_words(name, "b", b, 2)
    _check_count(name, "a", a.shape[1], count)
    if b.shape[1] != a.shape[1]:
        raise ValueError(f"{name}: b has {b.shape[1]} words a row, a has {a.shape[1]}")
    if dtype not in (np.int32, np.float32):
        raise ValueError(f"{name}: dtype must be int32 or float32, got {np.dtype(dtype)}")
    prepared = _prepare_matmul(name, b, count, mask)
    return run(prepared, a, empty((len(a), len(b)), dtype))


def xnor_matmul_reference(a, b, count, mask=None):
    """What :func:`xnor_matmul` computes, in plain NumPy."""
    differ = a[:, None, :] ^ b[None, :, :]  # (M, N, W)
    if mask is not None:
        differ &= mask
        count = np.bitwise_count(mask).sum(axis=1, dtype=np.int64)  # (N,)
    return (count - 2 * np.bitwise_count(differ).sum(axis=2, dtype=np.int64)).astype(np.int32)


# ------------------------------------------------------------------------------------- convolution


def xnor_conv2d(
    x,
    weight,
    channels,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
    mask=None,
):
    """2-D convolution (cross-correlation, as in PyTorch) of signs, channels last.

    Parameters
    ----------
    x : (N, H, W, words_for(channels)) uint64
    weight : (O, kh, kw, words_for(channels // groups)) uint64
        Tail bits are 0.
    channels : int
        C, the channels of ``x``.
    stride, padding, dilation : (int, int)
        Along height and width.
    groups : int
        A divisor of C and of O. Output channel o sees the channels of group ``o // (O // groups)``.
    padding_mode : "zeros" or "ones"
        What stands outside the image. A zero is not a sign and has no bit: a tap of the filter that
        falls on it adds nothing. "ones" puts +1 there.
    mask : (O, kh, kw, words_for(channels // groups)) uint64, optional
        1 where ``weight`` is not 0, for ternary weights.

    Returns
    -------
    (N, OH, OW, O) int32
        ``OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1``, OW likewise. With the
        taps that count (all for "ones", those inside the image for "zeros") and C / groups channels
        each, ``taps * C / groups - 2 * popcount(x ^ weight over these taps)``; with mask
        ``popcount(mask) - 2 * popcount((x ^ weight) & mask)`` over these taps.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, the output would be empty, or a filter has
        more than 2**31 - 1 weights.
    """
    name = "xnor_conv2d"
    x, weight = check_words(name, "x", x, 4), check_words(name, "weight", weight, 4)
    check_row(name, "x", x, "channels", channels)
    of = windows(name, x.shape[1:3], weight.shape[1:3], stride, padding, dilation)
    return run(_prepare_conv2d(name, weight, channels, of, groups, padding_mode, mask), x)


def xnor_conv2d_reference(
    x,
    weight,
    channels,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
    mask=None,
):
    """What :func:`xnor_conv2d` computes, in plain NumPy: one matrix product a tap and group."""
    filters, *kernel_size, _ = weight.shape
    group_channels, group_filters = channels // groups, filters // groups
    image = with_border(unpack_reference(x, channels), padding, int(padding_mode == "ones"))
    taps = unpack_reference(weight, group_channels)  # (O, kh, kw, C/groups)
    if mask is not None:
        taps *= unpack_reference(mask, group_channels) > 0
    of = windows("xnor_conv2d_reference", x.shape[1:3], kernel_size, stride, padding, dilation)
    out = np.zeros((len(x), *of.out_size, filters), np.float32)
    for ky, kx, seen in of.views(image):  # (N, OH, OW, C)
        for group in range(groups):
            c = slice(group * group_channels, (group + 1) * group_channels)
            o = slice(group * group_filters, (group + 1) * group_filters)
            out[..., o] += seen[..., c] @ taps[o, ky, kx].T
    return out.astype(np.int32)


# --------------------------------------------------------------------------------- laid-out weights


class Tables(NamedTuple):
    """What the kernels read of prepared weights.

    Kernels are handed it as a plain tuple, `Prepared.arguments`, and begin with
    ``tables = Tables(*arguments)``: a plain tuple gets from Python into compiled code in a third of
    the time, 2 microseconds less, and no class stands in Numba's cache on disk.

    Everything is seen as a convolution of flat words: an output pixel sees the L words at
    ``first word of the pixel + taps``. So nothing but a table knows of stride, dilation and the
    width of the image, and a matrix product is the case of images of one pixel. Pixels are counted
    through all images: pixel i is pixel ``i % P`` of image ``i // P``, with P output pixels an
    image.

    The filters of a group are cut into panels of 32, and one of 16 where that is enough for the
    rest. A panel holds word 0 of each of its filters, then word 1 of each, and so on, so that one
    load gives the words of 8 filters: those with an even number among 16, then those with an odd
    one. Two vectors of 64-bit counts then become one of 32-bit sums by putting the second into the
    upper halves of the first.

    Attributes
    ----------
    panels : (...,) uint64
        The words of all panels, one panel after the other.
    group_filters, group_columns : int
        Filters of a group, and these filled up to whole panels: column c of all panels begins at
        word ``c * L`` of ``panels``, and has column c in ``constants``.
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
        comparison is ``disagreements <= limit``.
    flips : (columns / 16,) uint64
        For bits: the channels of the panel that begins at column 16 j whose comparison is turned
        round.
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
    windows: tuple
    outside: np.ndarray


@dataclass(frozen=True, eq=False)
class Prepared:
    """Weights laid out for `run`, with the tables of one geometry; plain arrays and integers.

    Attributes
    ----------
    input_shape, output_shape : tuple of int
        Without the number of images or rows; the input in words, the output in channels.
    to_bits : bool
        Whether thresholds follow the sums.
    work : int
        Products of signs an image, with those that fill up words and panels.
    products : int
        Without them.
    masks : (...,) uint64, or (0,) uint8
        For ternary weights the words of their masks, laid out as ``tables.panels``. Kernels are
        compiled for one dtype or the other, so that binary weights pay nothing for this. It is an
        argument of its own: the types of all other tables are always the same, so this one chooses
        the code.
    tables : Tables
        For the kernels.
    arguments : tuple
        The same, as kernels take it.
    """

    input_shape: tuple
    output_shape: tuple
    to_bits: bool
    work: int
    products: int
    masks: np.ndarray
    tables: Tables

    @property
    def arguments(self):
        return tuple(self.tables)

    @property
    def kind(self):
        """The code that kernels are compiled to: "ternary" if weights may be 0, else "xnor"."""
        return "ternary" if self.masks.dtype == np.uint64 else "xnor"

    def workspace_words(self, images):
        """Words of the ``workspace`` that `run` needs for this number of images, at most."""
        return threads.most() * self.slot_words(images)

    def slot_words(self, images):
        """Words for the padded copies of images that one thread holds at a time."""
        tables = self.tables
        return min(tables.together, images) * tables.image_stride if tables.copies else 0

    def out_shape(self, images):
        """Shape of the result."""
        *size, channels = self.output_shape
        return (images, *size, words_for(channels) if self.to_bits else channels)


@functools.lru_cache(maxsize=256)
def _panels(groups, group_filters):
    """For each panel: its first column, its width, its group, its first filter and their number."""
    table, column = [], 0
    for group in range(groups):
        for first in range(0, group_filters, WIDE):
            count = min(WIDE, group_filters - first)
            width = WIDE if count > NARROW else NARROW
            table.append((column, width, group, group * group_filters + first, count))
            column += width
    return tuple(table), column


def _in_panels(weight, groups):
    """(O, kh, kw, words) of filters -> the words of all panels."""
    filters = len(weight)
    weight = weight.reshape(filters, math.prod(weight.shape[1:]))
    length = weight.shape[1]
    table, columns = _panels(groups, filters // groups)
    if filters // groups % WIDE == 0:  # all panels are full, and follow one another
        return _panel_words(weight.reshape(-1, WIDE, length))
    panels = empty((columns * length,), np.uint64)
    for column, width, _, first, count in table:
        panel = np.zeros((1, width, length), np.uint64)
        panel[0, :count] = weight[first : first + count]
        panels[column * length : (column + width) * length] = _panel_words(panel)
    return panels


def _panel_words(panels):
    """(P, width, L) words of filters -> those of P panels: even columns, then odd columns."""
    count, width, length = panels.shape
    pairs = panels.reshape(count, width // (2 * WORDS), WORDS, 2, length)
    return for_kernel(pairs.transpose(0, 4, 1, 3, 2)).reshape(-1)


_NO_MASKS, _NO_WORDS, _NO_SUMS = (np.zeros(0, dtype) for dtype in (np.uint8, np.uint64, np.int32))


def _check_mask(name, mask, weight):
    """The mask of ternary weights as words."""
    mask = check_words(name, "mask", mask, weight.ndim)
    if mask.shape != weight.shape:
        raise ValueError(
            f"{name}: mask must have the shape {weight.shape} of the weights, got {mask.shape}"
        )
    return mask


def _epilogue(base, groups, thresholds, flip):
    """Tables for what follows the count of disagreements.

    base : (classes, O) int64
    """
    table, columns = _panels(groups, base.shape[1] // groups)
    flips = np.zeros(columns // NARROW, np.uint64)
    if thresholds is None:
        values, unused = base, 0
    else:
        # (base - 2 d >= t) is (d <= (base - t) / 2), and d is an integer.
        # Limits beyond what it can be say the same as the nearest ones that int32 holds.
        values, unused = (base - thresholds.astype(np.int64)) >> 1, -1
        values = np.clip(values, -1, np.iinfo(np.int32).max)
    constants = empty((len(base), columns), np.int32)
    is_full = columns == base.shape[1]  # all panels are
    constants[:] = values if is_full else unused  # where there is no channel: these give bit 0
    for column, _, _, first, count in () if is_full else table:
        constants[:, column : column + count] = values[:, first : first + count]
    if thresholds is not None:
        for column, _, _, first, count in table:
            turned = np.packbits(flip[first : first + count], bitorder="little")
            flips[column // NARROW] = int.from_bytes(turned.tobytes(), "little")
    return constants.reshape(-1), flips


def _cuts(table, to_bits):
    """Where panels may be shared out: with bits, at channels that begin a word."""
    cuts = [p for p, (_, _, _, first, _) in enumerate(table) if first % 64 == 0 or not to_bits]
    return np.array([*cuts, len(table)])


def _check_thresholds(function, thresholds, flip, filters):
    if thresholds is None or flip is None:
        raise ValueError(f"{function}: thresholds and flip belong together, got only one of them")
    thresholds, flip = np.asarray(thresholds), np.asarray(flip)
    check_vector(function, "thresholds", thresholds, np.int32, filters)
    check_vector(function, "flip", flip, np.bool_, filters)
    return thresholds, flip


def prepare_matmul(b, count, *, mask=None, thresholds=None, flip=None):
    """Lay out the right-hand side of `xnor_matmul`.

    Parameters
    ----------
    b : (N, W) uint64
    count : int
        K, the number of signs a row.
    mask : (N, W) uint64, optional
        As in `xnor_matmul`.
    thresholds, flip : (N,) int32 and (N,) bool, optional
        With them `run` gives bits, as `threshold` of the product does.

    Returns
    -------
    Prepared
        `run` takes it with ``a``, (M, W) uint64; gives (M, N) int32 or (M, words_for(N)) uint64.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or ``count`` is not positive or above 2**31 - 1.
    """
    return _prepare_matmul("prepare_matmul", b, count, mask, thresholds, flip)


def _prepare_matmul(name, b, count, mask=None, thresholds=None, flip=None):
    b = check_words(name, "b", b, 2)
    plan = _matmul_plan(name, *b.shape, count, thresholds is not None)
    if mask is not None:
        mask = _check_mask(name, mask, b)
        terms = np.bitwise_count(mask).sum(1, dtype=np.int64)
        check_terms(name, "the number of bits of a row of mask", terms.max(initial=0))
        mask = mask[:, None, None]
    return _lay_out(name, plan, b[:, None, None], mask, thresholds, flip)


def _check_count(name, operand, words, count):
    """A ValueError unless so many words a row hold ``count`` signs, and int32 their sum."""
    if count < 1:
        raise ValueError(f"{name}: count must be positive, got {count}")
    check_terms(name, "count", count)
    if words < words_for(count):
        raise ValueError(
            f"{name}: {operand} has {words} words a row, count {count} needs {words_for(count)}"
        )


_ONE_PIXEL = windows("prepare_matmul", (1, 1), (1, 1))


@functools.lru_cache(maxsize=256)  # a layer in training is prepared at each step
def _matmul_plan(name, filters, words, count, to_bits):
    """A matrix product is the convolution of images of one pixel."""
    _check_count(name, "b", words, count)
    prepared, inside = _plan(_ONE_PIXEL, filters, int(count), 1, words, "zeros", to_bits)
    return replace(prepared, input_shape=(words,), output_shape=(filters,)), inside


def prepare_conv2d(
    weight,
    channels,
    size,
    *,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    padding_mode="zeros",
    mask=None,
    thresholds=None,
    flip=None,
):
    """Lay out the filters of `xnor_conv2d` for images of one size.

    Parameters
    ----------
    weight, channels, stride, padding, dilation, groups, padding_mode, mask
        As in `xnor_conv2d`.
    size : (int, int)
        Height and width of the images.
    thresholds, flip : (O,) int32 and (O,) bool, optional
        With them `run` gives bits, as `threshold` of the convolution does.

    Returns
    -------
    Prepared
        `run` takes it with ``x``, (N, H, W, words_for(channels)) uint64, and gives (N, OH, OW, O)
        int32 or (N, OH, OW, words_for(O)) uint64.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, the output would be empty, or a filter has
        more than 2**31 - 1 weights.
    """
    name = "prepare_conv2d"
    weight = check_words(name, "weight", weight, 4)
    of = windows(name, size, weight.shape[1:3], stride, padding, dilation)
    following = thresholds, flip
    return _prepare_conv2d(name, weight, channels, of, groups, padding_mode, mask, *following)


def _prepare_conv2d(
    name, weight, channels, of, groups, padding_mode, mask=None, thresholds=None, flip=None
):
    """``of`` are the windows."""
    filters, *_, words = weight.shape
    to_bits = thresholds is not None
    plan = _conv2d_plan(name, of, filters, channels, groups, words, padding_mode, to_bits)
    if mask is not None:
        mask = _check_mask(name, mask, weight)
    return _lay_out(name, plan, weight, mask, thresholds, flip)


@functools.lru_cache(maxsize=256)  # a layer in training is prepared at each step
def _conv2d_plan(name, of, filters, channels, groups, words, padding_mode, to_bits):
    check_groups(name, channels, filters, groups)
    per_group = int(channels // groups)
    check_width(name, "weight", words, "channels // groups", per_group)
    check_terms(name, "the number of weights of a filter", of.taps * per_group)
    check_padding_mode(name, padding_mode)
    return _plan(of, filters, int(channels), int(groups), words, padding_mode, to_bits)


def _plan(of, filters, channels, groups, words, padding_mode, to_bits):
    """All of a prepared product that does not depend on its weights.

    ``words`` are those of a group's pixel.

    Returns
    -------
    Prepared
        With tables in which those of the weights are empty.
    inside : (classes, kh * kw) float64
        As `_border_classes` gives it.
    """
    table, columns = _panels(groups, filters // groups)
    pixels, taps = of.places(words)
    inside, classes = _border_classes(of, padding_mode)
    image_words = math.prod(of.padded_size) * words
    tables = Tables(
        panels=_NO_WORDS,
        group_filters=filters // groups,
        group_columns=columns // groups,
        cuts=_cuts(table, to_bits),
        taps=np.add.outer(taps, np.arange(words)).reshape(-1),
        pixels=pixels,
        rows=classes * columns,
        constants=_NO_SUMS,
        flips=_NO_WORDS,
        filters=filters,
        group_stride=image_words,
        image_stride=groups * image_words,
        copies=groups > 1 or of.padding != (0, 0),
        together=-(-64 // len(pixels)),  # of 4 pixels a block: few are counted twice
        channels=channels,
        groups=groups,
        windows=tuple(of),
        outside=_outside(channels // groups, padding_mode),
    )
    prepared = Prepared(
        input_shape=(*of.size, words_for(channels)),
        output_shape=(*of.out_size, filters),
        to_bits=to_bits,
        work=64 * tables.taps.size * columns * len(pixels),
        products=of.taps * (channels // groups) * filters * len(pixels),
        masks=_NO_MASKS,
        tables=tables,
    )
    return prepared, inside


def _outside(channels, padding_mode):
    """The words of a pixel of the padding."""
    if padding_mode == "zeros":
        return np.zeros(words_for(channels), np.uint64)
    return from_bytes(np.packbits(np.ones(channels, np.bool_), bitorder="little"), channels)


def _lay_out(name, plan, weight, mask, thresholds, flip):
    """A plan with its weights, (O, kh, kw, words), and with what follows the sums."""
    prepared, inside = plan
    if thresholds is not None or flip is not None:
        thresholds, flip = _check_thresholds(name, thresholds, flip, len(weight))
    groups = prepared.tables.groups
    base = _border_sums(weight, mask, prepared.tables.channels // groups, inside)
    constants, flips = _epilogue(base, groups, thresholds, flip)
    masks = _NO_MASKS if mask is None else _in_panels(mask, groups)
    panels = _in_panels(weight, groups)
    tables = prepared.tables._replace(panels=panels, constants=constants, flips=flips)
    return replace(prepared, masks=masks, tables=tables)


def _border_classes(of, padding_mode):
    """What of a filter counts where.

    Pixels with the same taps inside the image form a class: 9 for a 3 x 3 filter with padding 1.

    Returns
    -------
    inside : (classes, kh * kw) float64
        1 for the taps that count, 0 for those on a padding with zeros.
    classes : (OH * OW,) int64
        The class of each output pixel.
    """
    if padding_mode == "ones":
        return np.ones((1, of.taps)), np.zeros(math.prod(of.out_size), np.int64)
    (rows, row_kind), (columns, column_kind) = (
        np.unique(of.inside(axis), axis=0, return_inverse=True) for axis in range(2)
    )
    both = rows[:, None, :, None] & columns[None, :, None, :]  # (rows, columns, kh, kw)
    classes = np.add.outer(row_kind.reshape(-1) * len(columns), column_kind.reshape(-1))
    return both.reshape(-1, of.taps).astype(np.float64), classes.reshape(-1)


def _border_sums(weight, mask, channels, inside):
    """What makes padding with zeros exact.

    A zero is no sign, but the padded image has to hold bits: it holds 0, so that a tap of the
    filter on the padding counts the tap's +1s as disagreements. What it counts depends on the
    weights only, and is given back here: with T taps inside the image,

        sum = T * C - 2 * (disagreements - popcount of the taps outside)

    A mask has popcount(mask) of the taps inside in place of T * C.

    Returns
    -------
    (classes, O) int64
        ``T * C + 2 * popcount of the taps outside``.
    """
    sums = np.empty((len(inside), len(weight)), np.int64)
    if mask is None:
        sums[:] = inside.sum(1, keepdims=True) * channels
    else:
        sums[:], weight = inside @ _ones_of_taps(mask).T, weight & mask
    if not inside.all():
        sums += (2 * ((1 - inside) @ _ones_of_taps(weight).T)).astype(np.int64)
    return sums


def _ones_of_taps(words):
    """(O, kh, kw, words) -> the number of 1s of each tap, (O, kh * kw)."""
    filters, *size, _ = words.shape
    return np.bitwise_count(words).sum(-1, dtype=np.int64).reshape(filters, math.prod(size))


# ------------------------------------------------------------------------------------------ running


def run(prepared, x, out=None, workspace=None):
    """The product or convolution of ``x`` with prepared weights.

    Parameters
    ----------
    prepared : Prepared
    x : (N, *prepared.input_shape) uint64
        Bits that are no signs are 0.
    out : array, optional
        Contiguous, of the result's shape and dtype, to be written to. Sums are also written to
        float32, which holds them exactly below 2**24.
    workspace : (n,) uint64, optional
        Memory for padded images, at least ``prepared.workspace_words(N)`` words.

    Returns
    -------
    (N, *prepared.output_shape) int32
        Sums; or, if the weights were prepared with thresholds, uint64 words of bits with
        words_for(channels) words in place of the channels.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit.
    """
    x = np.asarray(x)
    if x.dtype != np.uint64 or x.shape[1:] != prepared.input_shape or x.ndim == 0:
        expected = ", ".join(map(str, ("N", *prepared.input_shape)))
        raise ValueError(
            f"run: x must be uint64 of shape ({expected}), got {x.dtype} of shape {x.shape}"
        )
    dtype = np.uint64 if prepared.to_bits else np.int32
    if dtype == np.int32 and out is not None and out.dtype == np.float32:
        dtype = np.float32
    shape = prepared.out_shape(len(x))
    x, out = for_kernel(x), out_array("run", out, shape, dtype)
    bind(prepared, x, out, workspace)()
    return out


def run_reference(prepared, x):
    """What :func:`run` computes, in plain NumPy, from the same tables: one output at a time."""
    to_bits, tables, image = prepared.to_bits, prepared.tables, np.asarray(x)
    if tables.copies:
        split = split_groups_reference(image, tables.channels, tables.groups)
        of, (n, h, w, groups, _) = Windows(*tables.windows), split.shape
        shape = (n, groups, *of.padded_size, len(tables.outside))
        padded = np.broadcast_to(tables.outside, shape).copy()
        padded[:, :, of.top : of.top + h, of.left : of.left + w] = split.transpose(0, 3, 1, 2, 4)
        image = padded
    image = image.reshape(len(image), math.prod(image.shape[1:]))
    sums = np.zeros((len(image), len(tables.pixels), tables.filters), np.int64)
    length = len(tables.taps)

    def rows(panels, column, width):
        words = panels[column * length : (column + width) * length]
        return words.reshape(length, -1, 2, WORDS).swapaxes(2, 3).reshape(length, width)

    for column, width, group, first, count in _panels(tables.groups, tables.group_filters)[0]:
        words = rows(tables.panels, column, width)
        counted = rows(prepared.masks, column, width) if prepared.kind == "ternary" else _ALL_BITS
        for pixel, (address, row) in enumerate(zip(tables.pixels, tables.rows, strict=True)):
            seen = image[:, group * tables.group_stride + address + tables.taps]
            differ = (seen[:, :, None] ^ words) & counted
            differ = np.bitwise_count(differ).sum(1, dtype=np.int64)  # (N, width)
            constant = tables.constants[row + column : row + column + width]
            if to_bits:
                turned = unpack_reference(tables.flips[column // NARROW, None], width) > 0
                value = (differ <= constant) != turned
            else:
                value = constant - 2 * differ
            sums[:, pixel, first : first + count] = value[:, :count]
    shape = (len(image), *prepared.output_shape)
    if to_bits:
        return pack_reference(2 * sums.reshape(shape) - 1)
    return sums.reshape(shape).astype(np.int32)


def bind(prepared, x, out, workspace=None):
    """What `run` does, for the same arrays again and again: all but the work itself is done here.

    Parameters
    ----------
    prepared, x, out, workspace
        As in `run`; ``x`` and ``out`` are contiguous and fit.

    Returns
    -------
    callable
        Without arguments.
    """
    images, tables, arguments = len(x), prepared.tables, prepared.arguments
    slot = prepared.slot_words(images)
    tasks = tasks_for(images * prepared.work / _SPEED)
    if workspace is None:
        workspace = empty(tasks * slot, np.uint64) if slot else _NO_WORDS
    elif workspace.dtype != np.uint64 or workspace.ndim != 1 or len(workspace) < tasks * slot:
        raise ValueError(
            f"run: workspace must be a row of at least {tasks * slot} words, "
            f"got {workspace.dtype} of shape {workspace.shape}"
        )
    flat, items = out.reshape(-1), images * len(tables.pixels) if out.size else 0
    target = (0, _NO_SUMS, flat) if prepared.to_bits else (0, flat, _NO_WORDS)
    by_panels = tasks > 1 and items < 8 * tasks  # few pixels, and as many weights as ever
    if by_panels:
        shares = parallel.shares(len(tables.cuts) - 1, tasks)
    else:
        shares = parallel.shares(items, tasks, 4)  # whole blocks of 4 pixels
    return parallel.bind(
        _task, shares, (by_panels, items), x.reshape(-1), (workspace, slot), prepared.masks,
        arguments, target,
    )  # fmt: skip


@kernel(allocates=False)
def _task(first, end, task, cut, source, memory, masks, arguments, target):
    """Output pixels first to end - 1; or, ``by_panels``, all pixels of the panels of these cuts."""
    tables, (by_panels, items), (workspace, size) = Tables(*arguments), cut, memory
    panel, panel_end, slot = np.int64(0), tables.cuts[-1], task * size
    if by_panels:
        panel, panel_end, first, end = tables.cuts[first], tables.cuts[end], 0, items
    step = tables.together * len(tables.pixels)
    start = first
    while start < end:
        words, base, stop = source, np.int64(0), end
        if tables.copies:  # a few images at a time, which are used while they are in cache
            stop = min(start // step * step + step, end)
            words, base = workspace, pad(start, stop, source, workspace, slot, arguments)
        _blocks(start, stop, panel, panel_end, words, base, masks, arguments, target)
        start = stop


# ---------------------------------------------------------------------- for kernels in other files


@kernel(allocates=False)
def sums_of(first, end, words, base, masks, arguments, sums):
    """The sums of a range of output pixels, for a kernel that goes on with them while in cache.

    Such a kernel lies in another file, takes pixels in chunks and calls, for each chunk::

        words, base = source, 0
        if Tables(*arguments).copies:
            words, base = workspace, xnor.pad(first, end, source, workspace, slot, arguments)
        xnor.sums_of(first, end, words, base, masks, arguments, sums)

    Padded copies serve all chunks of an image if `pad` is called for the whole image before. Chunks
    of a multiple of 4 pixels are fastest.

    Parameters
    ----------
    first, end : int
        Output pixels first to end - 1, counted through all images.
    words : (...,) uint64
        The images; or, where they need copies, what `pad` made of them.
    base : int
        Image n begins at ``words[base + n * image_stride]``.
    masks, arguments : array and tuple
        Those of `Prepared`, of weights that were prepared without thresholds.
    sums : (at least (end - first) * filters,) int32 or float32
        Row ``i - first``, of as many sums as there are filters, is written for output pixel i.
    """
    tables = Tables(*arguments)
    target = first, sums, tables.flips[:0]
    # A literal 0 would be a type of its own, and all would be compiled again.
    _blocks(first, end, np.int64(0), tables.cuts[-1], words, base, masks, arguments, target)


@kernel(allocates=False)
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
        Has room for ``image_stride`` words an image from ``slot`` on.
    slot : int
        Where the copy of the first of these images begins.
    arguments : tuple
        `Prepared.arguments`.

    Returns
    -------
    int
        ``base``: the copy of image n begins at ``workspace[base + n * image_stride]``.
    """
    tables = Tables(*arguments)
    of, per_image = Windows(*tables.windows), len(tables.pixels)
    span = (of.kernel_height - 1) * of.row_dilation + 1  # rows that an output row sees
    image, last = first // per_image, (end - 1) // per_image
    base = slot - image * tables.image_stride
    for n in range(image, last + 1):
        top = max(first - n * per_image, 0) // of.out_width
        bottom = (min(end - n * per_image, per_image) - 1) // of.out_width
        rows = top * of.row_stride, bottom * of.row_stride + span
        for group in range(tables.groups):
            at = base + n * tables.image_stride + group * tables.group_stride
            _pad_rows(rows, source, n, group, workspace, at, tables)
    return base


@inlined
def _pad_rows(rows, source, image, group, workspace, at, tables):
    """Rows rows[0] to rows[1] - 1 of a padded image that begins at workspace[at]."""
    of, words, outside = Windows(*tables.windows), (tables.channels + 63) // 64, tables.outside
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


# --------------------------------------------------------------------------------------- the blocks


def counted(masks, index, words):
    """Which bits of a vector of words count: those of the masks; without masks all.

    All is a constant, and the compiler leaves out an `and` with it.
    """
    return load_like(masks, index, words) if masks.dtype == np.uint64 else all_ones(words)


@overload(counted)
def _compiled_counted(masks, index, words):
    if masks.dtype == types.uint64:
        return lambda masks, index, words: load_like(masks, index, words)
    return lambda masks, index, words: all_ones(words)


def count_disagreements(tile, places, words, step, filters):
    """Each row plus the number of bits of words[place + step] that differ from each filter's.

    ``filters`` are words of filters, and those of which bits of them count.
    """
    weights, counts = filters
    rows = zip(tile, places, strict=True)
    return tuple([row + popcount((words[p + step] ^ weights) & counts) for row, p in rows])


def _emit_disagreements(builder, row, pointer, filters):
    weights, counts = (builder.extract_value(filters, i) for i in range(2))
    word = everywhere(builder, builder.load(pointer), row.type.count)
    differ = builder.and_(builder.xor(word, weights), counts)
    name = f"llvm.ctpop.v{row.type.count}i64"
    return builder.add(row, call_llvm(builder, name, row.type, differ))


compile_rows(count_disagreements, _emit_disagreements)


# The inner loops. Counting the disagreements of a vector of words takes three instructions: xor,
# popcount, add. To keep these busy, what they work on has to be in registers: a block of 4 pixels
# times 32 filters has 16 vectors of counts, and the words loaded for one step (4 vectors of 8
# filters each, 4 words of pixels) meet 4 times each, so that 8 loads serve 48 instructions. The 16
# counts are independent of each other, so none waits for the one before.
#
# With few words a pixel a block is short, and what surrounds it counts: where a pixel's words are
# is looked up once and serves a batch of panels, as many as stay in the nearest cache.


@kernel(allocates=False)
def _blocks(first, end, panel, panel_end, words, base, masks, arguments, target):
    """Output pixels first to end - 1 of some panels; image n begins at base + n * image_stride.

    target : (origin, sums, bits)
        Where the results go: a row of ``sums`` or, unless it is empty, of ``bits`` for each pixel,
        beginning with pixel ``origin``.
    """
    tables = Tables(*arguments)
    wide = tables.group_columns // WIDE  # wide panels a group
    panels = (tables.group_columns + NARROW) // WIDE
    batch = max(_NEAR // (WIDE * len(tables.taps)), 1)
    for start in range(first, end, _PART):
        stop = min(start + _PART, end)
        for group in range(panel // panels, (panel_end - 1) // panels + 1):
            p_end = min(panel_end - group * panels, panels)
            for p in range(max(panel - group * panels, 0), min(p_end, wide), batch):
                some = group, p * WIDE, min(p + batch, p_end, wide) * WIDE
                _panel_sums(
                    zero_counts(WIDE), start, stop, some, words, base, masks, tables, target
                )
            if p_end > wide:
                last = group, wide * WIDE, wide * WIDE + NARROW
                zero = zero_counts(NARROW)
                _panel_sums(zero, start, stop, last, words, base, masks, tables, target)


@inlined
def _panel_sums(zero, first, end, some, words, base, masks, tables, target):
    """Some columns of a group, in panels as wide as ``zero``: (group, first, behind the last)."""
    group, c_first, c_end = some
    taps, panels = tables.taps, (tables.panels, masks)
    places = tables.pixels, tables.rows, tables.image_stride
    results = tables.constants, tables.flips, tables.filters, target[1], target[2]
    base += group * tables.group_stride
    column, channel = group * tables.group_columns, group * tables.group_filters
    step = 4 if end - first >= 4 else 1
    for i in range(first, end, step):
        if i > end - step:  # the last block moves back over pixels that are done
            i = end - step
        row = i - target[0]
        if step == 1:
            a, r = _place(i, base, places)
            for c in range(c_first, c_end, len(zero)):
                at, place = column + c, (channel + c, tables.group_filters - c)
                (n,) = _count((zero,), (a,), words, taps, panels, at * len(taps))
                _finish(n, at, r, row, place, results)
        else:
            a, (r0, r1, r2, r3) = _four_places(i, base, places)
            for c in range(c_first, c_end, len(zero)):
                at, place = column + c, (channel + c, tables.group_filters - c)
                n0, n1, n2, n3 = _count(four(zero), a, words, taps, panels, at * len(taps))
                _finish(n0, at, r0, row, place, results)
                _finish(n1, at, r1, row + 1, place, results)
                _finish(n2, at, r2, row + 2, place, results)
                _finish(n3, at, r3, row + 3, place, results)


@inlined
def _four_places(i, base, places):
    """First words and rows of constants of output pixels i to i + 3."""
    pixels, rows, stride = places
    if len(pixels) == 1:  # a matrix product: nothing to look up
        a = base + i * stride
        return (a, a + stride, a + 2 * stride, a + 3 * stride), (0, 0, 0, 0)
    image, p = i // len(pixels), i % len(pixels)
    if p + 4 <= len(pixels):
        a = base + image * stride
        firsts = a + pixels[p], a + pixels[p + 1], a + pixels[p + 2], a + pixels[p + 3]
        return firsts, (rows[p], rows[p + 1], rows[p + 2], rows[p + 3])
    (a0, r0), (a1, r1) = _place(i, base, places), _place(i + 1, base, places)
    (a2, r2), (a3, r3) = _place(i + 2, base, places), _place(i + 3, base, places)
    return (a0, a1, a2, a3), (r0, r1, r2, r3)


@inlined
def _place(i, base, places):
    """An output pixel's first word and row of constants."""
    pixels, rows, stride = places
    image, pixel = i // len(pixels), i % len(pixels)
    return base + image * stride + pixels[pixel], rows[pixel]


@inlined
def _count(tile, places, words, taps, panels, q):
    """Counts of disagreements of some pixels with the filters of a panel."""
    filters, masks = panels
    for j in range(len(taps)):
        w = load_like(filters, q, tile[0])
        tile = count_disagreements(tile, places, words, taps[j], (w, counted(masks, q, w)))
        q += len(w)
    return tile


@inlined
def _finish(counts, c, r, row, place, results):
    """The sums or the bits of one pixel and the filters of a panel.

    c, r : int
        The first column of the panel, and where the pixel's row of constants begins.
    place : (first output channel, number of channels from there on)
    """
    (channel, count), (constants, flips, filters, sums, bits) = place, results
    n = interleave(counts)
    constant, count = load_like(constants, r + c, n), min(count, len(n))
    if len(bits) > 0:
        _put(at_most(n, constant) ^ flips[c >> 4], row, filters, channel, count, bits)
    elif count == len(n):
        store(sums, row * filters + channel, constant - n - n)
    else:  # the panel is not full: the memory behind it belongs to others
        store_first(sums, row * filters + channel, constant - n - n, count)


@inlined
def _put(mask, row, filters, channel, count, bits):
    """Write ``count`` bits from ``channel`` on. The channels of a row come in ascending order."""
    at, shift = row * ((filters + 63) >> 6) + (channel >> 6), channel & 63
    if shift == 0:
        bits[at] = mask
    else:
        bits[at] |= mask << np.uint64(shift)
        if shift + count > 64:
            bits[at + 1] = mask >> np.uint64(64 - shift)


# ------------------------------------------------------------------------------ what can be reached


def register_peak(repetitions=200_000):
    """Products of signs a second that one core can count when nothing has to be loaded.

    The same instructions as the inner loop of the product, on values that stay in registers. What
    `xnor_matmul` reaches of it is what loads, stores and loops leave.

    Returns
    -------
    float
        Sign products a second, the best of 5 runs.
    """
    words = np.ones(WIDE, np.uint64)
    _register_loop(1, words)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        _register_loop(repetitions, words)
        seconds.append(time.perf_counter() - start)
    return repetitions * 4 * WIDE * 64 / min(seconds)


@kernel
def _register_loop(repetitions, words):
    w = load_like(words, 0, zero_counts(WIDE))
    c0, c1, c2, c3 = four(zero_counts(WIDE))
    for _ in range(repetitions):
        # Each count goes into its next value, so that nothing can be computed before the loop.
        c0 += popcount(c0 ^ w)
        c1 += popcount(c1 ^ w)
        c2 += popcount(c2 ^ w)
        c3 += popcount(c3 ^ w)
    store(words, 0, c0 + c1 + c2 + c3)
