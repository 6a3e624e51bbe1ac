"""Depth-wise convolution of packed signs with bit-sliced counters.

In a depth-wise convolution (groups = channels) each channel meets its own filter of kh × kw signs.
The population count of `xnor` does not help here: it adds up the bits of one word, and these belong
to 64 different sums. Bit-sliced counters do. One bit from each of a few words forms a binary
number, so these words hold 64 numbers side by side::

              channel  3 2 1 0
    word c0:  ones     0 1 1 0        channel 0 has counted 0 + 2*1 = 2,
    word c1:  twos     1 1 0 1        channel 1: 1, channel 2: 3, channel 3: 2

Such words are *bit planes*. Arithmetic on them imitates a circuit, one gate per instruction, for 64
channels at a time (512 in a vector): *bit slicing* (Biham 1997, A Fast New DES Implementation in
Software). The basic circuit is the full adder. It adds three bits of the same weight and returns
their sum as two bits: one of this weight, and a carry of twice the weight.

    >>> a, b, c = 0b1100, 0b1010, 0b1001    # four channels
    >>> one, two = full_adder(a, b, c)      # the channels have 3, 1, 1 and 1 bits set
    >>> f"{one:04b} {two:04b}"
    '1111 1000'

A convolution computes for each tap of the filter the agreement bits (XNOR of image and filter), and
adds them to the planes. Four taps are added at a time; three full adders reduce them to one bit of
weight 4 (the carry-save tree of Harley and Seal; Muła, Kurz, Lemire 2018, arXiv:1611.07612). With T
taps,

    sum = agreements - disagreements = 2 * agreements - T.

**Thresholds.** To test ``count >= level`` for 64 channels at once: the difference ``count - level``
is ``count + ~level + 1``, and the carry out of this addition is 1 if and only if the difference is
not negative. Only the carry of each full adder is needed.

**Borders.** A zero of the padding is not a sign and adds nothing, but the padded image holds a bit
0 in its place, which agrees with a weight of -1. The number of such agreements is known in advance,
so the loop masks nothing: the number is included in what is subtracted from the count (``base``
below), and in the thresholds. Rows of the output that see the same rows of the filter inside the
image form a class, and share base and thresholds.

**Few channels.** A pixel of 16 channels would leave three quarters of its word empty. So a row of
the output is cut into four *parts*, and a word holds one pixel of each: first the first pixels of
all parts, then the second ones. To the circuit these are 64 channels of a row a quarter as long.
Each part sees its own columns of the image, and those of the next part that its last filters reach.

`prepare` lays out all this once. `conv2d_sums_reference` and `conv2d_bits_reference` are the plain
NumPy versions; `tinybnn bench kernels` shows the speed.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types

from tinybnn.kernels.machine import parallel
from tinybnn.kernels.machine.checks import (
    check_padding_mode,
    check_vector,
    out_array,
)
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import aligned, empty
from tinybnn.kernels.machine.simd import (
    INTEGERS,
    WORDS,
    compiles,
    copy,
    inlined,
    kernel,
    load,
    load_bytes,
    store,
    subkernel,
    zero_words,
)
from tinybnn.kernels.machine.threads import tasks_for
from tinybnn.kernels.machine.windows import Windows, windows, with_border
from tinybnn.kernels.signs.bits import pack_reference, unpack, unpack_reference, words_for

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from tinybnn.typing import Array, Shape, Words

MAX_TAPS = 63  # largest number that six bit planes hold


# ------------------------------------------------------------------------------------------ circuit


@inlined
def half_adder(a: Words, b: Words) -> tuple[Words, Words]:
    """Add two bits in each position: return the sum bit, and a carry of twice its weight."""
    return a ^ b, a & b


@inlined
def full_adder(a: Words, b: Words, c: Words) -> tuple[Words, Words]:
    """Add three bits in each position: return the sum bit, and a carry of twice its weight."""
    return a ^ b ^ c, majority(a, b, c)


@inlined
def majority(a: Words, b: Words, c: Words) -> Words:
    """Return 1 in each position where at least two of three bits are 1."""
    return (a & b) | ((a | b) & c)


# --------------------------------------------------------------------------------------------- plan


class Plan(NamedTuple):
    """A depth-wise convolution laid out for images of one size; made by `prepare`.

    A *run* is a row of the output: part_width * words words, pixel after pixel, padded to whole
    vectors. All arrays are laid out in runs, so that the kernel sees contiguous words only. Pixel x
    of part p is pixel p * part_width + x of the row, and bit p * C + c of its word is channel c.

    Attributes
    ----------
    channels, words : int
        C, and the words of a pixel.
    parts, part_width : int
        Parts of a row, 1 if C is above 32; pixels of a part.
    windows : Windows
    padded : (padded rows * row_words + 8,) uint64
        The padding, with room for the image.
    row_words, phase_words : int
        Words of a row of the padded image. With a stride s along the width, the row is split into s
        phases of ``phase_words`` words: columns 0, s, 2s, ..., then columns 1, s + 1, .... So the
        pixels that a tap sees along an output row are contiguous.
    offsets : (taps,) int64
        Index in the padded image of the first pixel that a tap sees for output row 0.
    opposites : (taps * run,) uint64
        The inverted weights: exclusive or with them gives agreements.
    planes, run : int
        Bit planes of a count, from 1 to 6; words of a run.
    row_class : (OH,) int64
        The class of each output row.
    not_levels : (classes * planes * run,) uint64
        Inverted bit planes of the count from which on a bit is 1. Empty without thresholds.
    flips : (classes * run,) uint64
        Bits whose comparison is inverted. Empty without thresholds.
    minus_base : (classes, part_width * 64 * words) int8
        sum = 2 * count - base.
    """

    channels: int
    words: int
    parts: int
    part_width: int
    windows: Windows
    padded: np.ndarray
    row_words: int
    phase_words: int
    offsets: np.ndarray
    opposites: np.ndarray
    planes: int
    run: int
    row_class: np.ndarray
    not_levels: np.ndarray
    flips: np.ndarray
    minus_base: np.ndarray

    kind = "depthwise"

    @property
    def input_shape(self) -> Shape:
        """Shape of an image in words, (H, W, words)."""
        return *self.windows.size, self.words

    @property
    def output_shape(self) -> Shape:
        """Shape of an output image, (OH, OW, C)."""
        return *self.windows.out_size, self.channels

    @property
    def to_bits(self) -> bool:
        """Whether thresholds follow the sums."""
        return len(self.not_levels) > 0

    @property
    def products(self) -> int:
        """Sign products per image."""
        return self.windows.taps * math.prod(self.output_shape)

    def workspace_words(self, images: int) -> int:
        """Return the words of scratch memory that the caller must provide: none."""
        return 0


def prepare(
    weight: ArrayLike,
    channels: int,
    size: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    padding_mode: str = "zeros",
    thresholds: ArrayLike | None = None,
    flip: ArrayLike | None = None,
) -> Plan:
    """Lay out a depth-wise convolution once, before it is run.

    Parameters
    ----------
    weight : (kh, kw, words_for(channels)) uint64
        One filter per channel (groups = channels, channel multiplier 1), with at most 63 taps.
    channels : int
        C.
    size : (int, int)
        H, W of the images.
    stride, padding, dilation : (int, int)
        Along height and width.
    padding_mode : "zeros" or "ones"
        Value outside the image. A zero is not a sign: a tap on it adds nothing. "ones" pads
        with +1.
    thresholds, flip : (C,) int32 and (C,) bool, optional
        Needed by `conv2d_bits`.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not match, or the output would be empty.
    """
    weight = np.asarray(weight)
    _check_weight(weight, channels)
    check_padding_mode("depthwise", padding_mode)
    window = windows("depthwise", size, weight.shape[:2], stride, padding, dilation)
    words, taps, out_width = weight.shape[2], window.taps, window.out_width
    planes = taps.bit_length()
    part_width = -(-out_width // max(1, 64 // channels))
    parts = -(-out_width // part_width)
    padded, row_words, phase_words, offsets, counts, row_class = _places(
        window, channels, padding_mode, parts, part_width
    )
    classes = len(counts) // out_width

    # sum = agreements - disagreements, over the taps that count
    #     = 2 * (count - agreements that don't count) - taps that count
    #     = 2 * count - (taps - signs that don't count)
    signs = unpack(weight, channels).reshape(taps, channels)
    uncounted = (~counts).astype(np.float32) @ signs  # (classes * OW, C)
    wide = np.zeros((classes, parts * part_width, channels), np.int8)
    wide[:, :out_width] = (uncounted - taps).reshape(classes, out_width, channels)
    # Parts side by side in a word.
    minus_base = aligned(np.zeros((classes, part_width, 64 * words), np.int8))
    side_by_side = minus_base[..., : parts * channels].reshape(classes, part_width, parts, channels)
    side_by_side[...] = wide.reshape(classes, parts, part_width, channels).swapaxes(1, 2)

    run = -(-part_width * words // WORDS) * WORDS
    opposites = aligned(np.zeros((taps, run), np.uint64))
    row = opposites[:, : part_width * words].reshape(taps, part_width, words)
    row[:] = ~_in_parts(weight.reshape(taps, 1, 1, words), channels, parts)
    levels = flips = np.empty(0, np.uint64)
    if thresholds is not None or flip is not None:
        thresholds, flip = np.asarray(thresholds), np.asarray(flip)
        check_vector("depthwise", "thresholds", thresholds, np.int32, channels)
        check_vector("depthwise", "flip", flip, np.bool_, channels)
        thresholds, flip = np.tile(thresholds, parts), np.tile(flip, parts)
        levels, flips = _levels(-minus_base.astype(np.int64), thresholds, flip, taps)
    return Plan(
        channels, words, parts, part_width, window, padded, row_words, phase_words, offsets,
        opposites.reshape(-1), planes, run, row_class, levels, flips,
        minus_base.reshape(classes, -1),
    )  # fmt: skip


def _in_parts(pixels, channels, parts):
    """Put the words of all parts side by side: (..., parts, words) -> (..., words)."""
    if parts == 1:
        return pixels[..., 0, :]
    shifts = np.arange(parts, dtype=np.uint64)[:, None] * np.uint64(channels)
    pixels = pixels & np.uint64(2**channels - 1)
    return np.bitwise_or.reduce(pixels << shifts, axis=-2)


@functools.lru_cache(maxsize=256)  # a layer in training is prepared at each step
def _places(window, channels, padding_mode, parts, part_width):
    """Compute the part of a plan that does not depend on the weights.

    Returns
    -------
    padded, row_words, phase_words, offsets, row_class
        As in `Plan`.
    counts : (classes * out_width, taps) bool
        The taps that count, for each pixel of a row of each class.
    """
    words, (height, width) = words_for(channels), window.padded_size
    ky, kx = np.divmod(np.arange(window.taps), window.kernel_width)
    column, step = kx * window.column_dilation, window.column_stride
    # All pixels of a phase, or those that the filters of a part reach.
    phase_width = -(-width // step) if parts == 1 else part_width + int(column.max()) // step
    phase_words = phase_width * words
    row_words = step * phase_words
    offsets = ky * window.row_dilation * row_words + column % step * phase_words
    offsets += column // step * words

    # Bits of the padding, 0 at the pixels of the image.
    y = np.arange(height)[:, None, None, None] - window.top
    phase, place = np.arange(step)[:, None, None], np.arange(phase_width)[:, None]
    x = (np.arange(parts) * part_width + place) * step + phase - window.left
    outside_rows, outside_columns = (y < 0) | (y >= window.height), (x < 0) | (x >= window.width)
    is_outside = outside_rows | outside_columns  # (rows, phases, places, parts)
    outside = pack_reference(np.ones(channels)) * np.uint64(padding_mode == "ones")
    padded = _in_parts(is_outside[..., None] * outside, channels, parts)
    padded = np.pad(padded.reshape(-1), (0, WORDS))  # the last load is a whole vector

    # Which taps count, for each output position along an axis: (OH, kh), (OW, kw).
    rows, columns = (window.inside(axis) | (padding_mode == "ones") for axis in range(2))
    classes, row_class = np.unique(rows, axis=0, return_inverse=True)  # (R, kh)
    counts = classes[:, None, :, None] & columns[:, None, :]  # (R, OW, kh, kw)
    counts = counts.reshape(-1, window.taps)
    return padded, row_words, phase_words, offsets, counts, row_class.reshape(-1)


def _levels(base, thresholds, flip, taps):
    """Return the thresholds as inverted bit planes, and the bits whose comparison is inverted.

    2 * count - base >= threshold holds where count reaches half of threshold + base, rounded up. A
    count is from 0 to T. A level that is never reached is stored as level 0, which always is, with
    the opposite flip. Tail bits are stored in the same way, so that they are never 1.
    """
    channels = len(thresholds)
    level = np.zeros(base.shape, np.int64)  # (R, OW, 64 * words)
    flipped = np.ones(base.shape, np.bool_)
    level[..., :channels] = (thresholds.astype(np.int64) + base[..., :channels] + 1) >> 1
    flipped[..., :channels] = flip ^ (level[..., :channels] > taps)
    level[(level < 0) | (level > taps)] = 0
    shifts = np.arange(taps.bit_length())[:, None, None]
    is_zero = (level[:, None] >> shifts) & 1 == 0  # (R, planes, OW, 64 * words)
    inverted = _runs(pack_reference(np.where(is_zero, 1, -1)))  # (R, planes, run)
    flips = _runs(pack_reference(np.where(flipped, 1, -1)))  # (R, run)
    return aligned(inverted.ravel()), aligned(flips.ravel())


def _runs(words):
    """Pad rows (..., OW, words) to whole vectors: (..., run)."""
    runs = words.reshape(*words.shape[:-2], -1)
    fill = [(0, 0)] * (runs.ndim - 1) + [(0, -runs.shape[-1] % WORDS)]
    return np.pad(runs, fill)


# ------------------------------------------------------------------------------- bits, sums of bits


def conv2d_bits(plan: Plan, x: ArrayLike, out: Words | None = None) -> Words:
    """Convolve packed signs depth-wise and compare with thresholds, giving packed signs.

    Parameters
    ----------
    plan : Plan
        Made by `prepare` with thresholds.
    x : (N, H, W, words) uint64
    out : (N, OH, OW, words) uint64, optional
        C-contiguous.

    Returns
    -------
    (N, OH, OW, words) uint64
        Bit c is ``(sum[..., c] >= thresholds[c]) != flip[c]``.

    Raises
    ------
    ValueError
        If a dtype or a shape does not match, or the plan has no thresholds.
    """
    if not plan.to_bits:
        raise ValueError("depthwise: the plan has no thresholds; give them to prepare")
    shape = (*plan.windows.out_size, plan.words)
    x, out = _arrays(plan, x, shape, (np.uint64,), np.uint64, out)
    _run(plan, x, out.reshape(len(x), math.prod(shape)), _NO_SUMS)
    return out


def conv2d_bits_reference(
    x: Words,
    weight: Words,
    channels: int,
    thresholds: NDArray[np.int32],
    flip: NDArray[np.bool_],
    **geometry: Any,
) -> Words:
    """Compute :func:`conv2d_bits` in plain NumPy; ``geometry`` as in `conv2d_sums_reference`.

    x : (N, H, W, words) uint64, weight : (kh, kw, words) uint64, thresholds : (C,) int32, flip :
    (C,) bool -> (N, OH, OW, words) uint64
    """
    sums = conv2d_sums_reference(x, weight, channels, **geometry)
    return pack_reference(np.where((sums >= thresholds) != flip, 1, -1))


def conv2d_sums(
    plan: Plan, x: ArrayLike, dtype: DTypeLike = np.int32, out: Array | None = None
) -> Array:
    """Convolve packed signs depth-wise, giving integer sums.

    Parameters
    ----------
    plan : Plan
    x : (N, H, W, words) uint64
    dtype : int32, int8 or float32
        A sum is at most 63, so int8 holds it.
    out : (N, OH, OW, C) of ``dtype``, optional
        C-contiguous.

    Returns
    -------
    (N, OH, OW, C) of ``dtype``
        Agreements - disagreements over the taps that count (all for "ones", those inside the image
        for "zeros").

    Raises
    ------
    ValueError
        If a dtype or a shape does not match.
    """
    shape = plan.output_shape
    x, out = _arrays(plan, x, shape, (np.int32, np.int8, np.float32), dtype, out)
    _run(plan, x, _NO_BITS, out.reshape(len(x), shape[0] * shape[1], plan.channels))
    return out


def conv2d_sums_reference(
    x: Words,
    weight: Words,
    channels: int,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    padding_mode: str = "zeros",
) -> NDArray[np.int32]:
    """Compute :func:`conv2d_sums` in plain NumPy: one product of signs per tap.

    x : (N, H, W, words) uint64, weight : (kh, kw, words) uint64 -> (N, OH, OW, C) int32
    """
    window = windows("depthwise", x.shape[1:3], weight.shape[:2], stride, padding, dilation)
    signs = unpack_reference(x, channels, np.int32)
    image = with_border(signs, padding, int(padding_mode == "ones"))
    taps = unpack_reference(weight, channels, np.int32)  # (kh, kw, C)
    return sum(seen * taps[ky, kx] for ky, kx, seen in window.views(image))


_NO_BITS, _NO_SUMS = np.empty((0, 0), np.uint64), np.empty((0, 0, 0), np.int8)


def _run(plan, x, bits, sums):
    """Compute the whole batch, on several threads where that pays."""
    tasks = tasks_for(len(x) * _seconds_of_image(plan, sums.size > 0))
    tasks = max(1, min(tasks, len(x)))
    memory = (
        empty((tasks, len(plan.padded)), np.uint64),
        empty((tasks, 6 * plan.run), np.uint64),
        empty((tasks, plan.minus_base.shape[1]), np.int8),
    )
    parallel.share_out(_part, parallel.shares(len(x), tasks), plan, x, memory, bits, sums)


def _seconds_of_image(plan, as_sums):
    """Estimate the time of one core: for taps, words copied one by one, and unpacked sums."""
    window = plan.windows
    seconds = 0.2e-9 * window.out_height * len(plan.opposites)
    if window.column_stride > 1:
        seconds += 0.8e-9 * math.prod(window.size) * plan.words
    return seconds + 0.06e-9 * math.prod(window.out_size) * plan.channels * as_sums


# ------------------------------------------------------------------------------------------- kernel


# Functions take arrays of the plan and start indices instead of slices: a slice or a tuple of
# arrays costs reference counting, which takes longer than the work on a row.


@kernel(allocates=False)
def _part(first, end, task, plan, x, memory, bits, sums):
    """Compute images first to end - 1 with working memory of their own."""
    padded, counts, row = memory[0][task], memory[1][task], memory[2][task]
    copy(plan.padded, 0, padded, 0, len(plan.padded))
    _images(plan, x[first:end], padded, counts, row, bits[first:end], sums[first:end])


@subkernel
def _images(plan, x, padded, counts, row, bits, sums):
    """Compute ``bits`` or ``sums``; the other is empty. padded, counts, row : working memory.

    x : (N, H * W * words), bits : (N, OH * OW * words), sums : (N, OH * OW, C)
    """
    window = plan.windows
    step, length = window.row_stride * plan.row_words, window.out_width * plan.words
    for n in range(len(x)):
        pad_image(plan, x[n], padded)
        for oy in range(window.out_height):
            count_agreements(plan, padded, oy * step, counts)
            if len(bits):
                _compare(plan, counts, plan.row_class[oy] * plan.run)
                _copy_bits(plan, counts, bits[n], oy * length)
            else:
                unpack_counts(plan, counts, plan.row_class[oy], row)
                _copy_pixels(plan, row, sums[n], oy * window.out_width)


@inlined
def count_agreements(plan: Plan, padded: Words, first: int, counts: Words) -> None:
    """Count the taps that agree, for each bit of a run: ``counts`` are six rows of bit planes."""
    offsets, opposites = plan.offsets, plan.opposites
    taps, run, planes = len(offsets), plan.run, plan.planes
    for j in range(0, run, WORDS):
        here = first + j
        c0 = _agreement(padded, here + offsets[0], opposites, j)
        c1 = c2 = c3 = c4 = c5 = zero_words()
        tap = 1
        for _ in range((taps - 1) % 4):
            c0, two = half_adder(
                c0, _agreement(padded, here + offsets[tap], opposites, tap * run + j)
            )
            c1, four = half_adder(c1, two)
            c2 = c2 ^ four  # at most 4 so far
            tap += 1
        while tap < taps:
            a = _agreement(padded, here + offsets[tap], opposites, tap * run + j)
            b = _agreement(padded, here + offsets[tap + 1], opposites, (tap + 1) * run + j)
            c = _agreement(padded, here + offsets[tap + 2], opposites, (tap + 2) * run + j)
            d = _agreement(padded, here + offsets[tap + 3], opposites, (tap + 3) * run + j)
            c0, two = full_adder(c0, a, b)
            c0, other_two = full_adder(c0, c, d)
            c1, four = full_adder(c1, two, other_two)
            c2, eight = half_adder(c2, four)
            c3, sixteen = half_adder(c3, eight)
            if planes > 4:
                c4, thirty_two = half_adder(c4, sixteen)
                c5 = c5 ^ thirty_two
            tap += 4
        store(counts, j, c0)
        store(counts, run + j, c1)
        store(counts, 2 * run + j, c2)
        store(counts, 3 * run + j, c3)
        if planes > 4:
            store(counts, 4 * run + j, c4)
            store(counts, 5 * run + j, c5)


@inlined
def _compare(plan, counts, of_class):
    """Compute (count >= level) != flip in place of plane 0: the carry of count + ~level + 1."""
    run = plan.run
    for j in range(0, run, WORDS):
        level = of_class * plan.planes + j
        carry = load(counts, j) | load(plan.not_levels, level)
        for start in range(run, plan.planes * run, run):
            bit, not_level = load(counts, start + j), load(plan.not_levels, start + level)
            carry = majority(bit, not_level, carry)
        store(counts, j, carry ^ load(plan.flips, of_class + j))


@inlined
def unpack_counts(plan: Plan, counts: Words, of_class: int, sums: NDArray[np.int8]) -> None:
    """Write 2 * count - base as int8 numbers to ``sums``."""
    base, run = plan.minus_base[of_class], plan.run
    for word in range(len(base) // 64):
        at = 64 * word
        _add_planes(
            base, at, counts[word], counts[run + word], counts[2 * run + word],
            counts[3 * run + word], 2, sums,
        )  # fmt: skip
        if plan.planes > 4:
            nothing = np.uint64(0)
            _add_planes(
                sums, at, counts[4 * run + word], counts[5 * run + word], nothing, nothing, 32,
                sums,
            )  # fmt: skip


@inlined
def copy_sums(plan: Plan, row: NDArray[np.int8], sums: NDArray[np.int32], first: int) -> None:
    """Copy a row of sums to its place among int32 numbers, pixel by pixel.

    Each pixel may overwrite up to 15 numbers behind it, which the next one rewrites; there must be
    room for them behind the last pixel.
    """
    for part in range(plan.parts):
        begin = part * plan.part_width
        for x in range(min(plan.part_width, plan.windows.out_width - begin)):
            source, to = 64 * plan.words * x + part * plan.channels, (begin + x) * plan.channels
            for c in range(0, plan.channels, INTEGERS):
                store(sums, first + to + c, load_bytes(row, source + c))


@inlined
def _agreement(padded, here, opposites, tap):
    """Return the bits in which a tap of the filter agrees with the image."""
    return load(padded, here) ^ load(opposites, tap)


@inlined
def pad_image(plan: Plan, x: Words, padded: Words) -> None:
    """Copy an image into its padding, phase by phase."""
    window, row_words = plan.windows, plan.row_words
    if plan.parts > 1:
        start, end = window.top * row_words, (window.top + window.height) * row_words
        copy(plan.padded, start, padded, start, end - start)
    for phase in range(window.column_stride):
        # The first column of the image in this phase, and its offset in the phase.
        column = (phase - window.left) % window.column_stride
        place = (column + window.left) // window.column_stride * plan.words
        target = window.top * row_words + phase * plan.phase_words + place
        if plan.parts > 1:
            _pad_parts(plan, x, column, place, padded, target)
        elif window.column_stride == 1:
            for y in range(window.height):
                width = window.width * plan.words
                copy(x, y * width, padded, target + y * row_words, width)
        else:
            pixels = (window.width - column + window.column_stride - 1) // window.column_stride
            for y in range(window.height):
                source = (y * window.width + column) * plan.words
                to = target + y * row_words
                for w in range(plan.words):
                    _copy_every(x, source + w, window.column_stride * plan.words,
                                padded, to + w, plan.words, pixels)  # fmt: skip


@inlined
def _pad_parts(plan, x, column, place, padded, target):
    """Copy the pixels of a phase to each part that sees them; ``place`` is that of the first."""
    window, step = plan.windows, plan.windows.column_stride
    ones = (np.uint64(1) << np.uint64(plan.channels)) - np.uint64(1)
    pixels = (window.width - column + step - 1) // step
    for part in range(plan.parts):
        before = part * plan.part_width - place  # pixels of the phase before this part
        shift = np.uint64(part * plan.channels)
        for y in range(window.height):
            source, to = y * window.width + column, target + y * plan.row_words - before - place
            for i in range(max(0, before), min(pixels, before + plan.phase_words)):
                padded[to + i] |= (x[source + i * step] & ones) << shift


@inlined
def _copy_every(source, start, step, target, to, to_step, count):
    """Copy ``count`` words: target[to::to_step] = source[start::step]"""
    for i in range(count):
        target[to + i * to_step] = source[start + i * step]


@inlined
def _copy_bits(plan, row, bits, first):
    """Copy a row of bits to its place in the image."""
    if plan.parts == 1:
        copy(row, 0, bits, first, plan.windows.out_width * plan.words)
        return
    ones = (np.uint64(1) << np.uint64(plan.channels)) - np.uint64(1)
    for part in range(plan.parts):
        begin, shift = part * plan.part_width, np.uint64(part * plan.channels)
        for x in range(min(plan.part_width, plan.windows.out_width - begin)):
            bits[first + begin + x] = (row[x] >> shift) & ones


@inlined
def _copy_pixels(plan, row, image, first):
    """Copy a row of sums to its place in the image, without the bytes of the tails."""
    for part in range(plan.parts):
        begin = part * plan.part_width
        for x in range(min(plan.part_width, plan.windows.out_width - begin)):
            source = row[64 * plan.words * x + part * plan.channels :]
            target = image[first + begin + x]
            for c in range(len(target)):
                target[c] = source[c]


def _add_planes(base, at, ones, twos, fours, eights, unit, sums):
    """sums[at + i] = base[at + i] + unit * count, where bit i of four words are count's digits."""
    for i in range(64):
        planes = [int(word) >> i & 1 for word in (ones, twos, fours, eights)]
        count = sum(bit << k for k, bit in enumerate(planes))
        sums[at + i] = base[at + i] + unit * count


@compiles(_add_planes)
def _masked_additions(base, at, ones, twos, fours, eights, unit, sums):
    """Emit masked additions: 64 bits are the mask of 64 bytes."""
    byte, count = ir.IntType(8), 64
    vector = ir.VectorType(byte, count)

    def generate(context, builder, signature, arguments):
        base_array, index, *words, unit_value, sums_array = arguments

        def place(array_type, array):
            data = context.make_array(array_type)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        undefined = ir.Constant(vector, ir.Undefined)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
        nothing = ir.Constant(vector, [0] * count)
        value = builder.trunc(unit_value, byte)
        total = builder.load(place(base, base_array), align=1)
        for word in words:
            first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            everywhere = builder.shuffle_vector(first, undefined, lanes)
            mask = builder.bitcast(word, ir.VectorType(ir.IntType(1), count))
            total = builder.add(total, builder.select(mask, everywhere, nothing))
            value = builder.shl(value, ir.Constant(byte, 1))
        builder.store(total, place(sums, sums_array), align=1)
        return context.get_dummy_value()

    words = (types.uint64,) * 4
    return types.void(base, types.intp, *words, types.intp, sums), generate


# -------------------------------------------------------------------------------------------- check


def _check_weight(weight, channels):
    if weight.dtype != np.uint64 or weight.ndim != 3:
        raise ValueError(
            f"depthwise: weight must be uint64 with 3 axes (kh, kw, words), one filter per "
            f"channel, got {weight.dtype} of shape {weight.shape}"
        )
    if channels < 1:
        raise ValueError(f"depthwise: channels must be positive, got {channels}")
    kh, kw, words = weight.shape
    if words != words_for(channels):
        raise ValueError(
            f"depthwise: weight has {words} words per tap, {channels} channels need "
            f"{words_for(channels)}: one filter per channel (groups = channels, multiplier 1)"
        )
    if not 1 <= kh * kw <= MAX_TAPS:
        raise ValueError(
            f"depthwise: a filter must have from 1 to {MAX_TAPS} taps, got {kh} x {kw}"
        )


def _arrays(plan, x, out_shape, dtypes, dtype, out):
    """Return x for a kernel, and the output; a ValueError if one does not match."""
    x = np.asarray(x)
    shape = plan.input_shape
    if x.dtype != np.uint64 or x.ndim != 4 or x.shape[1:] != shape:
        raise ValueError(
            f"depthwise: x must be uint64 of shape (N, {', '.join(map(str, shape))}), "
            f"got {x.dtype} of shape {x.shape}"
        )
    if np.dtype(dtype) not in dtypes:
        names = " or ".join(np.dtype(d).name for d in dtypes)
        raise ValueError(f"depthwise: dtype must be {names}, got {np.dtype(dtype)}")
    out = out_array("depthwise", out, (len(x), *out_shape), dtype)
    return for_kernel(x).reshape(len(x), math.prod(shape)), out
