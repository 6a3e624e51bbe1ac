"""Rows of signs as rows of 64-bit words, and back.

A sign is one bit: 1 stands for +1 and 0 for -1, and ``sign(x) = +1 if x >= 0 else -1``. Both zeros
give +1; NaN, which is not >= 0, gives -1.

A row of K signs is stored in ``words_for(K)`` words of type ``uint64``. Element 64 j + i of the row
is bit i of word j, counted from the least significant bit. The bits behind the last element, the
tail, are 0. Every function here keeps that so, and every kernel on words relies on it: two tails of
zeros agree, so they add nothing to a count of disagreements.

On disk and on the wire a row is ``ceil(K / 8)`` bytes: 200 signs are 4 words in memory and 25 bytes
in a file.
"""

import numba
import numpy as np

_ALL_ONES = np.uint64(2**64 - 1)


def words_for(count: int) -> int:
    """Number of 64-bit words that hold ``count`` bits: ``ceil(count / 64)``.

    Raises
    ------
    ValueError
        If ``count`` is negative.
    """
    if count < 0:
        raise ValueError(f"words_for: count must not be negative, got {count}")
    return (count + 63) // 64


# ------------------------------------------------------------------------------------------- pack


def pack(x):
    """The signs of ``x`` along its last axis, as words.

    Parameters
    ----------
    x : (..., K) float32, float64 or integer
        Any strides. Bit k of a row is ``x[..., k] >= 0``.

    Returns
    -------
    (..., words_for(K)) uint64

    Raises
    ------
    ValueError
        If ``x`` has no axis, its last axis is empty, or its dtype is another one.
    """
    x = np.asarray(x)
    native = x.dtype.newbyteorder("=")
    if native not in (np.float32, np.float64) and native.kind not in "iu":
        raise ValueError(f"pack: x must be float32, float64 or integer, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"pack: the last axis of x must hold elements, x has shape {x.shape}")
    *lead, count = x.shape
    rows = np.ascontiguousarray(x, dtype=native).reshape(-1, count)
    words = np.empty((len(rows), words_for(count)), np.uint64)
    _pack(rows, words)
    return words.reshape(*lead, words.shape[1])


def pack_reference(x):
    """What :func:`pack` computes, in plain NumPy."""
    bits = np.asarray(x) >= 0
    packed = np.packbits(bits, axis=-1, bitorder="little")  # (..., ceil(K/8))
    *lead, size = packed.shape
    padded = np.zeros((*lead, 8 * words_for(bits.shape[-1])), np.uint8)
    padded[..., :size] = packed
    return padded.view("<u8").astype(np.uint64)


# Whole words have a loop of their own: with a constant length of 64 the compiler turns it into
# vector comparisons, several times as fast.
@numba.njit(cache=True, nogil=True)
def _pack(x, words):
    rows, count = x.shape
    whole, tail = count // 64, count % 64
    for row in range(rows):
        for j in range(whole):
            word = np.uint64(0)
            for bit in range(64):
                word |= np.uint64(x[row, 64 * j + bit] >= 0) << np.uint64(bit)
            words[row, j] = word
        if tail:
            word = np.uint64(0)
            for bit in range(tail):
                word |= np.uint64(x[row, 64 * whole + bit] >= 0) << np.uint64(bit)
            words[row, whole] = word


# ----------------------------------------------------------------------------------------- unpack


def unpack(words, count, dtype=np.float32):
    """The ±1 values of rows of words; the inverse of :func:`pack`.

    Parameters
    ----------
    words : (..., words_for(count)) uint64
    count : int
        K, the number of signs a row.
    dtype : numpy dtype
        float32, float64 or a signed integer type.

    Returns
    -------
    (..., K) of ``dtype``

    Raises
    ------
    ValueError
        If ``count`` is not positive, the words do not fit it, or ``dtype`` is another one.
    """
    words = _checked_words("unpack", words, "count", count)
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64) and dtype.kind != "i":
        raise ValueError(f"unpack: dtype must be float32, float64 or signed integer, got {dtype}")
    lead = words.shape[:-1]
    rows = words.reshape(-1, words.shape[-1])
    signs = np.empty((len(rows), count), dtype)
    _unpack(rows, signs)
    return signs.reshape(*lead, count)


def unpack_reference(words, count, dtype=np.float32):
    """What :func:`unpack` computes, in plain NumPy."""
    as_bytes = np.ascontiguousarray(words).astype("<u8").view(np.uint8)  # (..., 8*W)
    bits = np.unpackbits(as_bytes, axis=-1, count=count, bitorder="little")  # (..., K)
    return np.where(bits, 1, -1).astype(dtype)


@numba.njit(cache=True, nogil=True)
def _unpack(words, signs):
    rows, count = signs.shape
    for row in range(rows):
        for start in range(0, count, 64):
            word = words[row, start // 64]
            for bit in range(min(64, count - start)):
                is_one = (word >> np.uint64(bit)) & np.uint64(1)
                signs[row, start + bit] = 1 if is_one else -1


# ----------------------------------------------------------------------------------- split_groups


def split_groups(words, channels, groups):
    """Rows of channels cut into groups, each of which starts at bit 0 of words of its own.

    A grouped convolution compares a filter with the channels of one group only. These can lie
    across two words (48 channels in 2 groups: bits 0 to 23 and 24 to 47), so they are moved first.

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
        If ``channels`` is not positive, ``groups`` does not divide it, or the words do not fit it.
    """
    words = _checked_words("split_groups", words, "channels", channels)
    if groups < 1 or channels % groups:
        raise ValueError(f"split_groups: groups must divide {channels} channels, got {groups}")
    lead = words.shape[:-1]
    group_channels = channels // groups
    rows = words.reshape(-1, words.shape[-1])
    split = np.empty((len(rows), groups, words_for(group_channels)), np.uint64)
    _split_groups(rows, group_channels, split)
    return split.reshape(*lead, *split.shape[1:])


def split_groups_reference(words, channels, groups):
    """What :func:`split_groups` computes, in plain NumPy."""
    signs = unpack_reference(words, channels)  # (..., C)
    return pack_reference(signs.reshape(*signs.shape[:-1], groups, channels // groups))


@numba.njit(cache=True, nogil=True)
def _split_groups(words, group_channels, split):
    rows, groups, group_words = split.shape
    for row in range(rows):
        for group in range(groups):
            for j in range(group_words):
                length = min(64, group_channels - 64 * j)
                first = group * group_channels + 64 * j  # the bit of the row that becomes bit 0
                source, shift = first // 64, first % 64
                word = words[row, source] >> np.uint64(shift)
                if shift + length > 64:  # the rest lies in the next word
                    word |= words[row, source + 1] << np.uint64(64 - shift)
                split[row, group, j] = word & (_ALL_ONES >> np.uint64(64 - length))


# ------------------------------------------------------------------------------------------ bytes


def to_bytes(words, count):
    """Rows of words as rows of ``ceil(count / 8)`` bytes, the form for files and the wire.

    Bit i of byte j is element 8 j + i, on machines of either byte order.

    Parameters
    ----------
    words : (..., words_for(count)) uint64
    count : int
        K, the number of bits a row.

    Returns
    -------
    (..., ceil(K / 8)) uint8

    Raises
    ------
    ValueError
        If ``count`` is not positive, the words do not fit it, or a tail bit is set.
    """
    words = _checked_words("to_bytes", words, "count", count)
    _refuse_tail("to_bytes", "words", words, count)
    as_bytes = words.astype("<u8", copy=False).view(np.uint8)  # (..., 8*W)
    return as_bytes[..., : _bytes_for(count)].copy()


def from_bytes(bytes_, count):
    """Rows of words from rows of bytes; the inverse of :func:`to_bytes`.

    Parameters
    ----------
    bytes_ : (..., ceil(count / 8)) uint8
    count : int
        K, the number of bits a row.

    Returns
    -------
    (..., words_for(K)) uint64

    Raises
    ------
    ValueError
        If ``count`` is not positive, the bytes do not fit it, or a bit behind element K - 1 is set:
        the bytes are then not what :func:`to_bytes` wrote for this ``count``.
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
    """``words`` as a contiguous array, or a ValueError if it can't be rows of ``count`` bits."""
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
    return np.ascontiguousarray(words)


def _refuse_tail(function, name, words, count):
    used = count % 64  # bits used in the last word; 0 means all of them
    if used and np.any(words[..., -1] >> np.uint64(used)):
        raise ValueError(f"{function}: {name} has bits set behind the {count} bits of a row")
