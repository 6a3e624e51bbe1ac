"""Lay out the weights of sign products once, for kernels that read them many times."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.kernels.machine import threads
from tinybnn.kernels.machine.checks import (
    check_groups,
    check_padding_mode,
    check_terms,
    check_vector,
    check_width,
    check_words,
)
from tinybnn.kernels.machine.memory import aligned
from tinybnn.kernels.machine.shuffles import has_shuffles
from tinybnn.kernels.machine.simd import cpu_features, is_arm64
from tinybnn.kernels.machine.windows import Windows, windows
from tinybnn.kernels.signs import counting, counting_bytes, look_ups
from tinybnn.kernels.signs.bits import from_bytes, words_for
from tinybnn.kernels.signs.tables import LookUps, Tables, panels

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import ArrayLike

    from tinybnn.typing import Shape, Words


@dataclass(frozen=True, eq=False)
class Prepared:
    """Weights laid out for `run`, with the tables of one geometry; plain arrays and integers.

    Attributes
    ----------
    input_shape, output_shape : tuple of int
        Without the number of images or rows; the input in words, the output in channels.
    to_bits : bool
        Whether thresholds follow the sums, so that the output is bits.
    work : int
        Sign products per image, including those that fill up words and panels.
    products : int
        Sign products per image, without them.
    masks : (...,) uint64 or int8, or (0,) uint8
        Ternary weights whose bits are counted: the words of their masks, laid out as
        ``tables.panels``. Kernels are compiled for each dtype, so that binary weights pay nothing
        for masks.
    tables : Tables
        Read by the kernels, which take them as a plain tuple.
    """

    input_shape: Shape
    output_shape: Shape
    to_bits: bool
    work: int
    products: int
    masks: np.ndarray
    tables: Tables

    @property
    def kind(self) -> str:
        """Name of the code that kernels are compiled to.

        "look_ups"; or, where bits are counted, "ternary" if weights may be 0, else "xnor"; both end
        with "_bytes" if they are counted in bytes.
        """
        if self.method is look_ups:
            return "look_ups"
        kind = "xnor" if self.masks.dtype == np.uint8 else "ternary"
        return kind + "_bytes" * (self.method is counting_bytes)

    @property
    def method(self) -> ModuleType:
        """Module of the method that finds disagreements."""
        return _METHOD_OF[self.tables.panels.dtype.type]

    def workspace_words(self, images: int) -> int:
        """Return the most words of ``workspace`` that `run` needs for this number of images."""
        return threads.most() * self.slot_words(images)

    def slot_words(self, images: int) -> int:
        """Return the words that one thread needs for the copies of images it holds at a time.

        For look-ups, the table addresses lie behind each copy: four words for each of its words.
        """
        tables = self.tables
        images += images % 2  # images may be stored in pairs
        return min(tables.together, images) * tables.image_stride if tables.copies else 0

    def out_shape(self, images: int) -> Shape:
        """Return the shape of the result: (images, *output_shape), in words if it is bits."""
        *size, channels = self.output_shape
        return (images, *size, words_for(channels) if self.to_bits else channels)


_METHODS = {"counting": counting, "counting_bytes": counting_bytes, "look_ups": look_ups}
_METHOD_OF = {method.PANELS: method for method in _METHODS.values()}


@functools.cache
def has_fast_look_ups() -> bool:
    """Tell whether the CPU has byte shuffles, but no vector population count."""
    return has_shuffles() and "avx512vpopcntdq" not in cpu_features()


def best_method() -> str:
    """Return the name of the fastest method on this CPU

    It depends on what can be counted in one instruction: the bits of words (AVX-512 with
    VPOPCNTDQ), those of bytes (ARM64), or neither: then "look_ups", if there are byte shuffles.
    """
    if has_fast_look_ups():
        return "look_ups"
    return "counting_bytes" if is_arm64() else "counting"


def method_for(terms: int) -> ModuleType:
    """Choose the method for rows of this many signs: one of the modules of `method_named`.

    The choice does not depend on the number of filters, because one kernel computes all products of
    a fused layer.
    """
    best = best_method()
    pays = best != "look_ups" or look_ups.LEAST_TERMS <= terms <= look_ups.MOST_TERMS
    return _METHODS[best if pays else "counting"]


def method_named(name: str, method: str, terms: int = 0) -> ModuleType:
    """Return the module of a method by its name, "counting", "counting_bytes" or "look_ups".

    Raises
    ------
    ValueError
        If the name is another one, or the CPU or the number of signs rules the method out.
    """
    if method not in _METHODS:
        raise ValueError(
            f"{name}: method must be 'counting', 'counting_bytes' or 'look_ups', got {method!r}"
        )
    if method == "look_ups" and not has_shuffles():
        raise ValueError(f"{name}: method 'look_ups' needs AVX2, which this CPU lacks")
    if method == "look_ups" and terms > look_ups.MOST_TERMS:
        raise ValueError(
            f"{name}: method 'look_ups' takes up to {look_ups.MOST_TERMS} signs a row, got {terms}"
        )
    return _METHODS[method]


def _in_panels(weight, table, columns, lay_out):
    """Lay out (O, ...) words of filters as panels, one after the other."""
    filters, width = len(weight), max([width for _, width, *_ in table], default=1)
    if filters == columns and filters % width == 0:  # full, and of one width
        return lay_out(weight.reshape(-1, width, *weight.shape[1:]))
    parts = []
    for _, width, _, first, count in table:
        panel = np.zeros((1, width, *weight.shape[1:]), weight.dtype)
        panel[0, :count] = weight[first : first + count]
        parts.append(lay_out(panel))
    return aligned(np.concatenate(parts))


NO_MASKS, NO_WORDS, NO_SUMS = (np.zeros(0, dtype) for dtype in (np.uint8, np.uint64, np.int32))


def _check_mask(name, mask, weight):
    """Return the mask of ternary weights as words; a ValueError if it does not match them."""
    mask = check_words(name, "mask", mask, weight.ndim)
    if mask.shape != weight.shape:
        raise ValueError(
            f"{name}: mask must have the shape {weight.shape} of the weights, got {mask.shape}"
        )
    return mask


def _epilogue(base, zeros, groups, thresholds, flip, method):
    """Compute ``Tables.constants`` and ``.flips``, which turn disagreements into sums or bits.

    base : (classes, O) int64
        As returned by `_border_sums`.
    zeros : (O,) int64, or 0
        What look-ups count for ternary weights in addition to twice the disagreements: see
        `_rows_for_look_ups`.
    """
    table, columns = panels(groups, base.shape[1] // groups, method.WIDE, method.NARROW)
    flips, is_twofold = np.zeros(columns // 16, np.uint64), np.ndim(zeros) > 0
    if thresholds is None:
        values, unused = base + zeros, 0
    else:
        # base - 2 d >= t means d <= (base - t) / 2, and d is an integer.
        # Limits outside the range of d are clipped to int32, which changes no comparison.
        limits = (base - thresholds.astype(np.int64)) >> 1
        values, unused = limits * (1 + is_twofold) + zeros, -1
        values = np.clip(values, -1, np.iinfo(np.int32).max)
    constants = np.empty((len(base), columns), np.int32)
    is_full = columns == base.shape[1]  # no panel has unused columns
    constants[:] = values if is_full else unused  # unused columns give bit 0
    for column, _, _, first, count in () if is_full else table:
        constants[:, column : column + count] = values[:, first : first + count]
    if thresholds is not None:
        for column, _, _, first, count in table:
            for i in range(0, count, 32):
                turned = flip[first + i : first + min(i + 32, count)]
                turned = np.packbits(turned, bitorder="little").tobytes()
                flips[(column + i) // 16] = int.from_bytes(turned, "little")
    return constants.reshape(-1), flips


def _cuts(table, to_bits):
    """Return the panels at which work may be divided: with bits, at channels that begin a word."""
    cuts = [p for p, (_, _, _, first, _) in enumerate(table) if first % 64 == 0 or not to_bits]
    return np.array([*cuts, len(table)])


def _check_thresholds(function, thresholds, flip, filters):
    if thresholds is None or flip is None:
        raise ValueError(f"{function}: thresholds and flip must be given together, got only one")
    thresholds, flip = np.asarray(thresholds), np.asarray(flip)
    check_vector(function, "thresholds", thresholds, np.int32, filters)
    check_vector(function, "flip", flip, np.bool_, filters)
    return thresholds, flip


def prepare_matmul(
    b: ArrayLike,
    count: int,
    *,
    mask: ArrayLike | None = None,
    thresholds: ArrayLike | None = None,
    flip: ArrayLike | None = None,
    method: str | None = None,
) -> Prepared:
    """Lay out the right-hand side of `xnor_matmul`.

    Parameters
    ----------
    b : (N, W) uint64
    count : int
        K, the number of signs in a row.
    mask : (N, W) uint64, optional
        As in `xnor_matmul`.
    thresholds, flip : (N,) int32 and (N,) bool, optional
        If given, `run` returns bits, as `threshold` applied to the product.
    method : 'counting', 'counting_bytes' or 'look_ups', optional
        How disagreements are counted. Default: the faster one on this CPU. The result is the same.

    Returns
    -------
    Prepared
        For `run` with ``a``, (M, W) uint64; the result is (M, N) int32, or with thresholds
        (M, words_for(N)) uint64.

    Raises
    ------
    ValueError
        If a dtype or a shape does not match, ``count`` is not positive or above 2**31 - 1, or the
        CPU lacks the method.
    """
    return lay_out_matmul("prepare_matmul", b, count, mask, thresholds, flip, method)


def lay_out_matmul(
    name: str,
    b: ArrayLike,
    count: int,
    mask: ArrayLike | None = None,
    thresholds: ArrayLike | None = None,
    flip: ArrayLike | None = None,
    method: str | None = None,
) -> Prepared:
    """Do the work of `prepare_matmul`, with the function's ``name`` for errors; shapes as there."""
    b = check_words(name, "b", b, 2)
    terms = 64 * b.shape[1]
    method = method_for(terms) if method is None else method_named(name, method, terms)
    plan = _matmul_plan(name, *b.shape, count, thresholds is not None, mask is not None, method)
    if mask is not None:
        mask = _check_mask(name, mask, b)
        terms = np.bitwise_count(mask).sum(1, dtype=np.int64)
        check_terms(name, "the number of bits of a row of mask", terms.max(initial=0))
        mask = mask[:, None, None]
    return _lay_out(name, plan, b[:, None, None], mask, thresholds, flip)


def check_count(name: str, operand: str, words: int, count: int) -> None:
    """Raise a ValueError unless ``words`` words hold ``count`` signs, and int32 their sum."""
    if count < 1:
        raise ValueError(f"{name}: count must be positive, got {count}")
    check_terms(name, "count", count)
    if words < words_for(count):
        raise ValueError(
            f"{name}: {operand} has {words} words a row, count {count} needs {words_for(count)}"
        )


_ONE_PIXEL = windows("prepare_matmul", (1, 1), (1, 1))


@functools.lru_cache(maxsize=256)  # a layer in training is prepared at each step
def _matmul_plan(name, filters, words, count, to_bits, is_ternary, method):
    """Plan a matrix product: the convolution of images of one pixel."""
    check_count(name, "b", words, count)
    prepared, inside = _plan(
        _ONE_PIXEL, filters, int(count), 1, words, "zeros", to_bits, is_ternary, method
    )
    return replace(prepared, input_shape=(words,), output_shape=(filters,)), inside


def prepare_conv2d(
    weight: ArrayLike,
    channels: int,
    size: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
    mask: ArrayLike | None = None,
    thresholds: ArrayLike | None = None,
    flip: ArrayLike | None = None,
) -> Prepared:
    """Lay out the filters of `xnor_conv2d` for images of one size.

    Parameters
    ----------
    weight, channels, stride, padding, dilation, groups, padding_mode, mask
        As in `xnor_conv2d`.
    size : (int, int)
        Height and width of the images.
    thresholds, flip : (O,) int32 and (O,) bool, optional
        If given, `run` returns bits, as `threshold` applied to the convolution.

    Returns
    -------
    Prepared
        For `run` with ``x``, (N, H, W, words_for(channels)) uint64; the result is (N, OH, OW, O)
        int32, or with thresholds (N, OH, OW, words_for(O)) uint64.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not match, the output would be empty, or a filter
        has more than 2**31 - 1 weights.
    """
    name = "prepare_conv2d"
    weight = check_words(name, "weight", weight, 4)
    window = windows(name, size, weight.shape[1:3], stride, padding, dilation)
    following = thresholds, flip
    return lay_out_conv2d(name, weight, channels, window, groups, padding_mode, mask, *following)


def lay_out_conv2d(
    name: str,
    weight: Words,
    channels: int,
    window: Windows,
    groups: int,
    padding_mode: str,
    mask: ArrayLike | None = None,
    thresholds: ArrayLike | None = None,
    flip: ArrayLike | None = None,
) -> Prepared:
    """Do the work of `prepare_conv2d` for given windows; shapes as there."""
    filters, kh, kw, words = weight.shape
    following = thresholds is not None, mask is not None, method_for(64 * kh * kw * words)
    plan = _conv2d_plan(name, window, filters, channels, groups, words, padding_mode, *following)
    if mask is not None:
        mask = _check_mask(name, mask, weight)
    return _lay_out(name, plan, weight, mask, thresholds, flip)


@functools.lru_cache(maxsize=256)  # a layer in training is prepared at each step
def _conv2d_plan(name, window, filters, channels, groups, words, padding_mode, *following):
    check_groups(name, channels, filters, groups)
    per_group = int(channels // groups)
    check_width(name, "weight", words, "channels // groups", per_group)
    check_terms(name, "the number of weights of a filter", window.taps * per_group)
    check_padding_mode(name, padding_mode)
    return _plan(window, filters, int(channels), int(groups), words, padding_mode, *following)


def _plan(window, filters, channels, groups, words, padding_mode, to_bits, is_ternary, method):
    """Build the part of a prepared product that does not depend on its weights.

    ``words`` is the number of words of one group of a pixel.

    Returns
    -------
    Prepared
        With empty tables for the weights.
    inside : (classes, kh * kw) float64
        As returned by `_border_classes`.
    """
    table, columns = panels(groups, filters // groups, method.WIDE, method.NARROW)
    pixels, taps = window.places(words)
    inside, classes = _border_classes(window, padding_mode)
    image_words = math.prod(window.padded_size) * words
    tables = Tables(
        panels=np.zeros(0, method.PANELS),
        group_filters=filters // groups,
        group_columns=columns // groups,
        cuts=_cuts(table, to_bits),
        taps=np.add.outer(taps, np.arange(words)).reshape(-1),
        pixels=pixels,
        rows=classes * columns,
        constants=NO_SUMS,
        flips=NO_WORDS,
        filters=filters,
        group_stride=image_words,
        image_stride=groups * image_words,
        copies=groups > 1 or window.padding != (0, 0),
        together=-(-64 // len(pixels)),  # blocks of 4 pixels overlap only at the end
        channels=channels,
        groups=groups,
        windows=tuple(window),
        outside=_outside(channels // groups, words, padding_mode),
        look_ups=tuple(_NO_LOOK_UPS),
    )
    prepared = Prepared(
        input_shape=(*window.size, words_for(channels)),
        output_shape=(*window.out_size, filters),
        to_bits=to_bits,
        work=64 * tables.taps.size * columns * len(pixels),
        products=window.taps * (channels // groups) * filters * len(pixels),
        masks=NO_MASKS,
        tables=_with_look_ups(tables, window, taps, is_ternary) if method is look_ups else tables,
    )
    return prepared, inside


_NO_LOOK_UPS = LookUps(NO_MASKS, np.zeros(0, np.int64), np.zeros(1, np.int64), 0, 0, 0, False)


def _with_look_ups(tables, window, taps, is_ternary):
    """Add the tables for `look_ups`. Images are copied, each with its table addresses behind it."""
    words, group_channels = len(tables.outside), tables.channels // tables.groups
    # Rows of a matrix may contain padding in several places, such as after each pixel.
    nibbles = 16 * words if window == _ONE_PIXEL else -(-group_channels // 4)
    starts = [16 * int(tap) for tap in taps] * (1 + is_ternary)
    segments, parts = look_ups.segments(starts, nibbles)
    is_read_as_it_is = len(tables.pixels) == 1 and not tables.copies
    image_words = 0 if is_read_as_it_is else tables.image_stride
    record = LookUps(
        entries=look_ups.entries(),
        segments=segments,
        parts=parts,
        count=nibbles * len(starts),
        image_words=image_words,
        neighbour=window.column_stride * words if window.out_width > 1 else 0,
        is_twofold=is_ternary,
    )
    # A word has 16 nibbles, whose table addresses take 4 words.
    stride = 5 * image_words or 2 * tables.image_stride
    return tables._replace(
        panels=NO_MASKS, image_stride=stride, copies=True, look_ups=tuple(record)
    )


def _outside(channels, words, padding_mode):
    """Return the words of a padding pixel."""
    if padding_mode == "zeros":
        return np.zeros(words, np.uint64)
    return from_bytes(np.packbits(np.ones(channels, np.bool_), bitorder="little"), channels)


def _lay_out(name, plan, weight, mask, thresholds, flip):
    """Add the weights, (O, kh, kw, words), and the epilogue to a plan."""
    prepared, inside = plan
    if thresholds is not None or flip is not None:
        thresholds, flip = _check_thresholds(name, thresholds, flip, len(weight))
    tables, masks, zeros = prepared.tables, NO_MASKS, 0
    base = _border_sums(weight, mask, tables.channels // tables.groups, inside)
    filters, height, width, words = weight.shape
    weight = weight.reshape(filters, height * width, words)
    mask = None if mask is None else mask.reshape(weight.shape)
    method = prepared.method
    columns = panels(tables.groups, tables.group_filters, method.WIDE, method.NARROW)
    if method is look_ups:
        rows, count, zeros = _rows_for_look_ups(weight, mask, LookUps(*tables.look_ups))
        weights = _in_panels(rows, *columns, lambda rows: look_ups.panel_nibbles(rows, count))
    else:
        rows = weight.reshape(len(weight), math.prod(weight.shape[1:]))
        weights = _in_panels(rows, *columns, method.panel_words)
        if mask is not None:
            masks = _in_panels(mask.reshape(rows.shape), *columns, method.panel_words)
    constants, flips = _epilogue(base, zeros, tables.groups, thresholds, flip, method)
    tables = tables._replace(panels=weights, constants=constants, flips=flips)
    return replace(prepared, masks=masks, tables=tables)


def _rows_for_look_ups(weight, mask, record):
    """Express weights as rows of signs; binary weights are that already.

    A ternary filter is half the sum of two rows of signs, which differ where it is zero. There
    exactly one of them disagrees with any sign. So their disagreements are twice the filter's, plus
    the number of its zeros.

    Returns
    -------
    rows : (O, taps or 2 * taps, words) uint64
    count : int
        Nibbles looked up per tap.
    zeros : (O,) int64, or 0
        What is counted in addition to disagreements.
    """
    taps = weight.shape[1]
    if mask is None:
        return weight, record.count // taps, 0
    count = record.count // (2 * taps)
    looked_up = from_bytes(np.packbits(np.ones(4 * count, np.bool_), bitorder="little"), 4 * count)
    below, above = weight & mask, weight | (~mask & looked_up)
    zeros = np.bitwise_count(below ^ above).sum((1, 2), dtype=np.int64)
    return np.concatenate([below, above], 1), count, zeros


def _border_classes(window, padding_mode):
    """Classify output pixels by the taps that lie inside the image.

    Pixels with the same taps inside form a class: 9 for a 3 x 3 filter with padding 1.

    Returns
    -------
    inside : (classes, kh * kw) float64
        1 for the taps that count, 0 for those on zero padding.
    classes : (OH * OW,) int64
        The class of each output pixel.
    """
    if padding_mode == "ones":
        return np.ones((1, window.taps)), np.zeros(math.prod(window.out_size), np.int64)
    (rows, row_kind), (columns, column_kind) = (
        np.unique(window.inside(axis), axis=0, return_inverse=True) for axis in range(2)
    )
    both = rows[:, None, :, None] & columns[None, :, None, :]  # (rows, columns, kh, kw)
    classes = np.add.outer(row_kind.reshape(-1) * len(columns), column_kind.reshape(-1))
    return both.reshape(-1, window.taps).astype(np.float64), classes.reshape(-1)


def _border_sums(weight, mask, channels, inside):
    """Compute the constants that make zero padding exact.

    A zero is no sign, but the padded image has to hold bits. It holds 0 there, so a tap on the
    padding counts its weights of +1 as disagreements. That number depends on the weights only, and
    is added back here: with T taps inside the image,

        sum = T * C - 2 * (disagreements - popcount of the taps outside)

    With a mask, popcount(mask) of the taps inside takes the place of T * C.

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
    """Count the 1s of each tap: (O, kh, kw, words) -> (O, kh * kw)."""
    filters, *size, _ = words.shape
    return np.bitwise_count(words).sum(-1, dtype=np.int64).reshape(filters, math.prod(size))
