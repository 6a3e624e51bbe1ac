"""Pack rows of signs into 64-bit words, and unpack them.

A sign is one bit: 1 stands for +1 and 0 for -1, and ``sign(x) = +1 if x >= 0 else -1``. Both zeros
give +1; NaN, which is not >= 0, gives -1.

A row of K signs is stored in ``words_for(K)`` words of type ``uint64``. Element 64 j + i of the row
is bit i of word j, counted from the least significant bit. The bits behind the last element, the
tail, are 0. Every function here preserves this, and every kernel on words relies on it: two zero
tails agree, so they add nothing to a count of disagreements.

In files and in messages a row is ``ceil(K / 8)`` bytes: 200 signs are 4 words in memory and 25
bytes in a file.

The kernels are for speed alone: `tinybnn bench kernels` compares `pack` and `unpack` with NumPy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir
from numba.core import types

from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.layout import words_for as words_for
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import compiles, element_address, inlined, kernel, subkernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from tinybnn.typing import Array, Words

_NO_BITS, _NO_BIT = np.uint64(0), np.uint32(0)
_ALL_ONES = np.uint64(2**64 - 1)

_LARGE = 128  # least pixels of an image that is packed plane by plane
_RUN = 1024  # pixels at a time


# ------------------------------------------------------------------------------------------- pack


def pack(x: ArrayLike, thresholds: ArrayLike | None = None) -> Words:
    """Pack the signs of ``x`` along its last axis into words.

    Parameters
    ----------
    x : (..., K) float32, float64 or integer
        Any strides. Bit k of a row is ``x[..., k] >= 0``. Two memory layouts are read in place:
        C-contiguous rows, and channels-first images (``x.transpose(0, 2, 3, 1)`` of a contiguous
        (N, C, H, W) array). Any other layout, and images of less than 64 pixels, are copied first.
    thresholds : (K,) float32 or float64, same dtype as ``x``, optional
        Bit k of a row is ``x[..., k] - thresholds[k] >= 0``, with the difference rounded to the
        dtype: the sign of ReActNet's RSign (Liu et al. 2020, arXiv:2003.03488, eq. 1). For finite
        thresholds this equals ``x >= threshold``, because subnormal numbers keep the difference of
        unequal floats from rounding to 0; but inf - inf is NaN, which is not >= 0.

    Returns
    -------
    (..., words_for(K)) uint64

    Raises
    ------
    ValueError
        If ``x`` has no axis, an empty last axis or another dtype, or if the thresholds do not
        match it.
    """
    x = np.asarray(x)
    native = x.dtype.newbyteorder("=")
    if native not in (np.float32, np.float64) and native.kind not in "iu":
        raise ValueError(f"pack: x must be float32, float64 or integer, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"pack: the last axis of x must hold elements, x has shape {x.shape}")
    *lead, count = x.shape
    if thresholds is not None:
        thresholds = np.asarray(thresholds)
        if native.kind != "f" or thresholds.dtype != native or thresholds.shape != (count,):
            raise ValueError(
                f"pack: thresholds must have shape ({count},) and the dtype of x, which must be "
                f"float32 or float64; got {thresholds.dtype} of shape {thresholds.shape}, "
                f"x is {x.dtype}"
            )
        thresholds = for_kernel(thresholds)
    is_planes = _channels_first(x, native)
    in_order = for_kernel(np.moveaxis(x, -1, 1) if is_planes else x.astype(native, copy=False))
    words = empty((*lead, words_for(count)), np.uint64)
    # In compiled code inf - inf is NaN without a warning; do the same when the JIT is off.
    with np.errstate(over="ignore", invalid="ignore"):
        if is_planes:
            images, pixels = len(x), math.prod(x.shape[1:-1])
            if thresholds is None:
                thresholds = np.zeros(count, native)
            pack_images = _pack_planes if pixels >= _LARGE else _pack_blocks
            planes = in_order.reshape(images, count, pixels)
            pack_images(planes, thresholds, words.reshape(images, pixels, words.shape[-1]))
        else:
            rows = math.prod(lead)
            _pack(in_order.reshape(rows, count), thresholds, words.reshape(rows, words.shape[-1]))
    return words


def bind_pack(x: NDArray[np.float32], words: Words) -> Callable[[], None]:
    """Prepare `pack` for repeated calls on the same arrays.

    Parameters
    ----------
    x : (..., K) float32, C-contiguous
    words : (..., words_for(K)) uint64, C-contiguous
        The result is written to it.

    Returns
    -------
    callable
        Takes no arguments.
    """
    rows, row_words = x.reshape(-1, x.shape[-1]), words.reshape(-1, words.shape[-1])
    return lambda: _pack(rows, None, row_words)


def pack_reference(x: ArrayLike, thresholds: ArrayLike | None = None) -> Words:
    """Compute :func:`pack` in plain NumPy; shapes and dtypes as there."""
    x = np.asarray(x)
    with np.errstate(over="ignore", invalid="ignore"):
        bits = (x if thresholds is None else x - thresholds) >= 0
    packed = np.packbits(bits, axis=-1, bitorder="little")  # (..., ceil(K/8))
    *lead, size = packed.shape
    padded = np.zeros((*lead, 8 * words_for(bits.shape[-1])), np.uint8)
    padded[..., :size] = packed
    return padded.view("<u8").astype(np.uint64)


def _channels_first(x, native):
    """Tell whether (N, ..., C) images are stored as (N, C, ...), with at least 64 pixels."""
    if x.ndim < 3 or x.flags.c_contiguous or x.dtype != native or not x.flags.aligned:
        return False
    return np.moveaxis(x, -1, 1).flags.c_contiguous and math.prod(x.shape[1:-1]) >= 64


@kernel
def _pack(x, thresholds, words):
    rows, count = x.shape
    whole, tail = 64 * (count // 64), count % 64
    for row in range(rows):
        for k in range(0, whole, 64):
            words[row, k // 64] = _whole_word(x, row * count + k, thresholds, k)
        if tail:
            levels = None if thresholds is None else thresholds[whole:]
            words[row, whole // 64] = _word(x[row, whole:], levels, tail)


def _whole_word(x, index, thresholds, k):
    """Pack 64 elements of a contiguous array, from ``index`` on, with thresholds from ``k`` on.

    Compiled, this is one comparison of 64 lanes, whose result bits are the word: packs and
    `vpmovmskb` on AVX2, masks on AVX-512.
    """
    levels = None if thresholds is None else thresholds[k : k + 64]
    return _word(x.reshape(-1)[index : index + 64], levels, 64)


@compiles(_whole_word)
def _compiled_whole_word(x, index, thresholds, k):
    def generate(context, builder, signature, arguments):
        lanes = ir.VectorType(context.get_value_type(x.dtype), 64)

        def load(array_type, array, at):
            pointer = element_address(context, builder, array_type, array, at)
            pointer = builder.bitcast(pointer, lanes.as_pointer())
            return builder.load(pointer, align=x.dtype.bitwidth // 8)

        x_value, index_value, thresholds_value, k_value = arguments
        values, zero = load(x, x_value, index_value), ir.Constant(lanes, None)
        if thresholds is not types.none:
            values = builder.fsub(values, load(thresholds, thresholds_value, k_value))
        if isinstance(x.dtype, types.Float):
            is_plus = builder.fcmp_ordered(">=", values, zero)
        else:
            compare = builder.icmp_signed if x.dtype.signed else builder.icmp_unsigned
            is_plus = compare(">=", values, zero)
        return builder.bitcast(is_plus, ir.IntType(64))

    return types.uint64(x, types.intp, thresholds, types.intp), generate


@subkernel
def _word(values, levels, size):
    """Pack up to 64 elements; ``levels`` are their thresholds, or None."""
    word = np.uint64(0)
    for bit in range(size):
        is_plus = values[bit] >= 0 if levels is None else values[bit] - levels[bit] >= 0
        word |= np.uint64(is_plus) << np.uint64(bit)
    return word


# With channels first, a word takes one number from each of 64 planes. Reading a little of each
# plane in turn defeats the prefetcher (and planes of 4 KB, 32×32 pixels, all map to the same few
# cache lines). So large images are read plane by plane.


@kernel
def _pack_planes(x, thresholds, words):
    """Pack large images. x : (N, C, pixels), words : (N, pixels, words_for(C))"""
    images, channels, pixels = x.shape
    halves = np.empty((2, min(_RUN, pixels)), np.uint32)  # lower and upper half of each word
    for n in range(images):
        for first in range(0, pixels, _RUN):
            end = min(first + _RUN, pixels)
            for j in range(words.shape[2]):
                halves[:] = 0
                for c in range(64 * j, min(64 * j + 64, channels)):
                    half, bit = halves[c // 32 % 2], np.uint32(1) << np.uint32(c % 32)
                    _set_where(half, x[n, c, first:end], thresholds[c], bit)
                target = words[n, first:end, j]
                for i in range(len(target)):
                    high = np.uint64(halves[1, i]) << np.uint64(32)
                    target[i] = np.uint64(halves[0, i]) | high


@subkernel
def _set_where(half, values, level, bit):
    """Set ``bit`` in the half words whose value is not below the level."""
    for i in range(len(values)):
        half[i] |= bit if values[i] - level >= 0 else _NO_BIT


@kernel
def _pack_blocks(x, thresholds, words):
    """Pack small images of at least 64 pixels: all planes of 64 pixels at a time.

    x : (N, C, pixels), words : (N, pixels, words_for(C))
    """
    images, channels, pixels = x.shape
    block = np.empty(64, np.uint64)  # a word of each of 64 pixels
    for n in range(images):
        for start in range(0, pixels, 64):
            first = min(start, pixels - 64)  # the last block overlaps its predecessor
            for j in range(words.shape[2]):
                block[:] = 0
                for c in range(64 * j, min(64 * j + 64, channels)):
                    bit, level = np.uint64(1) << np.uint64(c % 64), thresholds[c]
                    values = x[n, c, first : first + 64]
                    for i in range(64):
                        block[i] |= bit if values[i] - level >= 0 else _NO_BITS
                for i in range(64):
                    words[n, first + i, j] = block[i]


# ----------------------------------------------------------------------------------------- unpack


def unpack(words: ArrayLike, count: int, dtype: DTypeLike = np.float32) -> Array:
    """Unpack rows of words to ±1; the inverse of :func:`pack`.

    Parameters
    ----------
    words : (..., words_for(count)) uint64
    count : int
        K, the number of signs in a row.
    dtype : numpy dtype
        float32, float64 or a signed integer type.

    Returns
    -------
    (..., K) of ``dtype``

    Raises
    ------
    ValueError
        If ``count`` is not positive or does not match the words, or ``dtype`` is another one.
    """
    words = _checked_words("unpack", words, "count", count)
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64) and dtype.kind != "i":
        raise ValueError(f"unpack: dtype must be float32, float64 or signed integer, got {dtype}")
    lead = words.shape[:-1]
    rows = words.reshape(-1, words.shape[-1])
    signs = empty((len(rows), count), dtype)
    _unpack(rows, signs)
    return signs.reshape(*lead, count)


def unpack_reference(words: Words, count: int, dtype: DTypeLike = np.float32) -> Array:
    """Compute :func:`unpack` in plain NumPy. words : (..., W) uint64 -> (..., count)"""
    as_bytes = np.ascontiguousarray(words).astype("<u8").view(np.uint8)  # (..., 8*W)
    bits = np.unpackbits(as_bytes, axis=-1, count=count, bitorder="little")  # (..., K)
    return np.where(bits, 1, -1).astype(dtype)


@kernel
def _unpack(words, signs):
    rows, count = signs.shape
    whole, tail = 64 * (count // 64), count % 64
    for row in range(rows):
        for k in range(0, whole, 64):
            _signs(words[row, k // 64], signs[row, k : k + 64], 64)
        if tail:
            _signs(words[row, whole // 64], signs[row, whole:], tail)


@subkernel
def _signs(word, signs, size):
    for bit in range(size):
        signs[bit] = 1 if (word >> np.uint64(bit)) & np.uint64(1) else -1


# ----------------------------------------------------------------------------------- split_groups


def split_groups(words: ArrayLike, channels: int, groups: int) -> Words:
    """Cut rows of channels into groups; each starts at bit 0 of its own words.

    A grouped convolution compares a filter with the channels of one group only. A group can
    straddle two words (48 channels in 2 groups: bits 0 to 23 and 24 to 47), so the bits are moved
    first.

    Parameters
    ----------
    words : (..., words_for(channels)) uint64
    channels : int
    groups : int
        A divisor of ``channels``.

    Returns
    -------
    (..., groups, words_for(channels // groups)) uint64

    Raises
    ------
    ValueError
        If ``channels`` is not positive, not divisible by ``groups``, or does not match the words.
    """
    words = _checked_words("split_groups", words, "channels", channels)
    if groups < 1 or channels % groups:
        raise ValueError(f"split_groups: groups must divide {channels} channels, got {groups}")
    lead = words.shape[:-1]
    group_channels = channels // groups
    rows = words.reshape(-1, words.shape[-1])
    split = empty((len(rows), groups, words_for(group_channels)), np.uint64)
    _split_groups(rows.reshape(-1), rows.shape[1], group_channels, split)
    return split.reshape(*lead, *split.shape[1:])


def split_groups_reference(words: Words, channels: int, groups: int) -> Words:
    """Compute :func:`split_groups` in plain NumPy; shapes as there."""
    signs = unpack_reference(words, channels)  # (..., C)
    return pack_reference(signs.reshape(*signs.shape[:-1], groups, channels // groups))


@kernel
def _split_groups(words, row_words, group_channels, split):
    rows, groups, group_words = split.shape
    for row in range(rows):
        for group in range(groups):
            for j in range(group_words):
                first, count = group * group_channels + 64 * j, min(64, group_channels - 64 * j)
                split[row, group, j] = bits_from(words, row * row_words, first, count)


@inlined
def bits_from(words: Words, start: int, first: int, count: int) -> np.uint64:
    """Read bits first to first + count - 1 of the row that begins at words[start]; count <= 64."""
    at, shift = start + first // 64, first % 64
    word = words[at] >> np.uint64(shift)
    if shift + count > 64:  # the rest lies in the next word
        word |= words[at + 1] << np.uint64(64 - shift)
    return word & (_ALL_ONES >> np.uint64(64 - count))


# ------------------------------------------------------------------------------------------ bytes


def to_bytes(words: ArrayLike, count: int) -> NDArray[np.uint8]:
    """Convert rows of words to rows of ``ceil(count / 8)`` bytes, as files and messages hold them.

    Bit i of byte j is element 8 j + i, on machines of either byte order.

    Parameters
    ----------
    words : (..., words_for(count)) uint64
    count : int
        K, the number of bits in a row.

    Returns
    -------
    (..., ceil(K / 8)) uint8

    Raises
    ------
    ValueError
        If ``count`` is not positive or does not match the words, or a tail bit is set.
    """
    words = _checked_words("to_bytes", words, "count", count)
    _refuse_tail("to_bytes", "words", words, count)
    as_bytes = words.astype("<u8", copy=False).view(np.uint8)  # (..., 8*W)
    return as_bytes[..., : _bytes_for(count)].copy()


def from_bytes(bytes_: ArrayLike, count: int) -> Words:
    """Convert rows of bytes to rows of words; the inverse of :func:`to_bytes`.

    Parameters
    ----------
    bytes_ : (..., ceil(count / 8)) uint8
    count : int
        K, the number of bits in a row.

    Returns
    -------
    (..., words_for(K)) uint64

    Raises
    ------
    ValueError
        If ``count`` is not positive or does not match the bytes, or if a bit behind element K - 1
        is set: then :func:`to_bytes` did not write them for this ``count``.
    """
    bytes_ = np.asarray(bytes_)
    if count < 1:
        raise ValueError(f"from_bytes: count must be positive, got {count}")
    if bytes_.dtype != np.uint8 or bytes_.ndim == 0:
        raise ValueError(
            f"from_bytes: bytes_ must be an array of uint8 with at least one axis, "
            f"got {bytes_.dtype} of shape {bytes_.shape}"
        )
    *lead, size = bytes_.shape
    if size != _bytes_for(count):
        raise ValueError(
            f"from_bytes: bytes_ has {size} bytes a row, {count} bits need {_bytes_for(count)}"
        )
    padded = np.zeros((*lead, 8 * words_for(count)), np.uint8)
    padded[..., :size] = bytes_
    words = padded.view("<u8").astype(np.uint64, copy=False)
    _refuse_tail("from_bytes", "bytes_", words, count)
    return words


def _bytes_for(count):
    return (count + 7) // 8


# ----------------------------------------------------------------------------------------- checks


def _checked_words(function, words, count_name, count):
    """Return ``words`` for a kernel; a ValueError if they cannot be rows of ``count`` bits."""
    if count < 1:
        raise ValueError(f"{function}: {count_name} must be positive, got {count}")
    words = np.asarray(words)
    if words.dtype != np.uint64 or words.ndim == 0:
        raise ValueError(
            f"{function}: words must be an array of uint64 with at least one axis, "
            f"got {words.dtype} of shape {words.shape}"
        )
    if words.shape[-1] != words_for(count):
        raise ValueError(
            f"{function}: words has {words.shape[-1]} words a row, "
            f"{count_name} {count} needs {words_for(count)}"
        )
    return for_kernel(words)


def _refuse_tail(function, name, words, count):
    used = count % 64  # bits used in the last word; 0 means all of them
    if used and np.any(words[..., -1] >> np.uint64(used)):
        raise ValueError(f"{function}: {name} has bits set behind the {count} bits of a row")
