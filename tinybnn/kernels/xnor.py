"""Arithmetic on packed signs: matrix product, convolution, threshold and max-pool.

Two signs multiply to +1 when they agree and to -1 when they differ, so the dot product of K signs
is (number of agreements) - (number of disagreements) = K - 2 * disagreements, and 64 disagreements
at a time are counted by one exclusive or and one population count::

    dot(a, b) = K - 2 * popcount(a ^ b)

(Courbariaux et al. 2016, arXiv:1602.02830; Rastegari et al. 2016, XNOR-Net,
arXiv:1603.05279.) K is the true length: the tails of both rows are 0, agree, and add
no disagreement.

Each function has a twin, ``*_reference``, that computes the same in plain NumPy.
"""

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from tinybnn.kernels import threads
from tinybnn.kernels.bits import (
    from_bytes,
    pack_reference,
    split_groups,
    unpack_reference,
    words_for,
)

_NO_BITS = np.uint64(0)
_ALL_BITS = np.uint64(2**64 - 1)


def _popcount(word):
    """Number of bits set in a 64-bit word. Compiled code uses the CPU's instruction for it."""
    return int(word).bit_count()


@intrinsic
def _popcount_instruction(typing_context, word):
    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@overload(_popcount)
def _compiled_popcount(word):
    return lambda word: _popcount_instruction(word)


# ---------------------------------------------------------------------------------- matrix product


def xnor_matmul(a, b, count):
    """Dot products of all rows of ``a`` with all rows of ``b``: ``a @ b.T`` on signs.

    Parameters
    ----------
    a : (M, W) uint64
    b : (N, W) uint64
        At least words_for(count) words a row. Bits that are no signs, at the tail or between parts
        that are padded to whole words (pixels, say), are 0 on both sides and do not count.
    count : int
        K, the number of signs a row.

    Returns
    -------
    (M, N) int32
        ``K - 2 * popcount(a[i] ^ b[j])``.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or ``count`` is not positive.
    """
    a, b = _words("xnor_matmul", "a", a, 2), _words("xnor_matmul", "b", b, 2)
    if count < 1:
        raise ValueError(f"xnor_matmul: count must be positive, got {count}")
    if a.shape[1] < words_for(count):
        raise ValueError(
            f"xnor_matmul: a has {a.shape[1]} words a row, count {count} needs {words_for(count)}"
        )
    if b.shape[1] != a.shape[1]:
        raise ValueError(f"xnor_matmul: b has {b.shape[1]} words a row, a has {a.shape[1]}")
    out = np.empty((len(a), len(b)), np.int32)
    with threads.exclusive():
        _xnor_matmul(a, b, count, out)
    return out


def xnor_matmul_reference(a, b, count):
    """What :func:`xnor_matmul` computes, in plain NumPy."""
    differ = a[:, None, :] ^ b[None, :, :]  # (M, N, W)
    return (count - 2 * np.bitwise_count(differ).sum(axis=2, dtype=np.int64)).astype(np.int32)


@numba.njit(cache=True, nogil=True, parallel=True)
def _xnor_matmul(a, b, count, out):
    rows, words = a.shape
    for i in numba.prange(rows):
        for j in range(b.shape[0]):
            disagreements = 0
            for w in range(words):
                disagreements += _popcount(a[i, w] ^ b[j, w])
            out[i, j] = count - 2 * disagreements


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

    Returns
    -------
    (N, OH, OW, O) int32
        ``OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1``, OW likewise. With the
        taps that count (all for "ones", those inside the image for "zeros") and C / groups channels
        each, ``taps * C / groups - 2 * popcount(x ^ weight over these taps)``.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the output would be empty.
    """
    name = "xnor_conv2d"
    x, weight = _words(name, "x", x, 4), _words(name, "weight", weight, 4)
    stride, dilation = _pair(name, "stride", stride, 1), _pair(name, "dilation", dilation, 1)
    padding = _pair(name, "padding", padding, 0)
    _check_row(name, "x", x, "channels", channels)
    if groups < 1 or channels % groups or len(weight) % groups:
        raise ValueError(
            f"{name}: groups must divide {channels} input channels and {len(weight)} output "
            f"channels, got {groups}"
        )
    _check_row(name, "weight", weight, "channels // groups", channels // groups)
    if padding_mode not in ("zeros", "ones"):
        raise ValueError(f'{name}: padding_mode must be "zeros" or "ones", got {padding_mode!r}')
    size = _output_size(name, x.shape[1:3], weight.shape[1:3], stride, padding, dilation)
    out = np.empty((len(x), *size, len(weight)), np.int32)
    grouped = split_groups(x, channels, groups)  # (N, H, W, groups, words of a group)
    plus_ones = _row_of_ones(channels // groups)
    with threads.exclusive():
        _xnor_conv2d(
            grouped,
            weight,
            channels // groups,
            stride,
            padding,
            dilation,
            padding_mode == "ones",
            plus_ones,
            out,
        )
    return out


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
):
    """What :func:`xnor_conv2d` computes, in plain NumPy: one matrix product a tap and group."""
    filters, kh, kw, _ = weight.shape
    group_channels, group_filters = channels // groups, filters // groups
    border = ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0))
    outside = 1 if padding_mode == "ones" else 0
    image = np.pad(unpack_reference(x, channels), border, constant_values=outside)  # (N, H', W', C)
    taps = unpack_reference(weight, group_channels)  # (O, kh, kw, C/groups)
    oh, ow = _output_size(
        "xnor_conv2d_reference", x.shape[1:3], (kh, kw), stride, padding, dilation
    )
    out = np.zeros((len(x), oh, ow, filters), np.float32)
    for ky in range(kh):
        for kx in range(kw):
            top, left = ky * dilation[0], kx * dilation[1]
            bottom, right = top + (oh - 1) * stride[0] + 1, left + (ow - 1) * stride[1] + 1
            seen = image[:, top : bottom : stride[0], left : right : stride[1]]  # (N, OH, OW, C)
            for group in range(groups):
                c = slice(group * group_channels, (group + 1) * group_channels)
                o = slice(group * group_filters, (group + 1) * group_filters)
                out[..., o] += seen[..., c] @ taps[o, ky, kx].T
    return out.astype(np.int32)


# For each output pixel and group, the words under the filter are gathered into one row, the patch,
# that lies in memory as a filter does. `counts` is all ones for a word that counts and 0 for a
# zero of the padding, where it wipes out every disagreement.
@numba.njit(cache=True, nogil=True, parallel=True)
def _xnor_conv2d(
    image, weight, group_channels, stride, padding, dilation, pad_with_ones, plus_ones, out
):
    groups = image.shape[3]
    images, out_height, out_width, filters = out.shape
    _, kernel_height, kernel_width, group_words = weight.shape
    length = kernel_height * kernel_width * group_words
    rows_of_weight = weight.reshape(filters, length)
    group_filters = filters // groups
    for row in numba.prange(images * out_height):
        n, oy = row // out_height, row % out_height
        patch = np.empty((kernel_height, kernel_width, group_words), np.uint64)
        counts = np.empty((kernel_height, kernel_width, group_words), np.uint64)
        row_of_patch, row_of_counts = patch.reshape(length), counts.reshape(length)
        for ox in range(out_width):
            top, left = oy * stride[0] - padding[0], ox * stride[1] - padding[1]
            for group in range(groups):
                taps = _gather(
                    image[n, :, :, group],
                    top,
                    left,
                    dilation,
                    pad_with_ones,
                    plus_ones,
                    patch,
                    counts,
                )
                for o in range(group * group_filters, (group + 1) * group_filters):
                    disagreements = 0
                    for i in range(length):
                        differ = row_of_patch[i] ^ rows_of_weight[o, i]
                        disagreements += _popcount(differ & row_of_counts[i])
                    out[n, oy, ox, o] = taps * group_channels - 2 * disagreements


@numba.njit(cache=True, nogil=True)
def _gather(image, top, left, dilation, pad_with_ones, plus_ones, patch, counts):
    """Fill ``patch`` and ``counts`` from an (H, W, words) image; return how many taps count."""
    height, width, _ = image.shape
    kernel_height, kernel_width, words = patch.shape
    taps = 0
    for ky in range(kernel_height):
        y = top + ky * dilation[0]
        for kx in range(kernel_width):
            x = left + kx * dilation[1]
            inside = 0 <= y < height and 0 <= x < width
            if inside or pad_with_ones:
                taps += 1
            for w in range(words):
                if inside:
                    patch[ky, kx, w] = image[y, x, w]
                    counts[ky, kx, w] = _ALL_BITS
                elif pad_with_ones:
                    patch[ky, kx, w] = plus_ones[w]
                    counts[ky, kx, w] = _ALL_BITS
                else:
                    patch[ky, kx, w] = _NO_BITS
                    counts[ky, kx, w] = _NO_BITS
    return taps


# --------------------------------------------------------------------------------------- threshold


def threshold(accumulator, thresholds, flip):
    """Integer sums to packed signs: what batch norm and sign come to on integers.

    ``sign(gamma * (acc - mean) / std + beta)`` changes once as ``acc`` grows, so it is one
    comparison a channel; a negative gamma turns it round (Umuroglu et al. 2017, FINN,
    arXiv:1612.07119).

    Parameters
    ----------
    accumulator : (..., C) int32
    thresholds : (C,) int32
    flip : (C,) bool

    Returns
    -------
    (..., words_for(C)) uint64
        Bit c is ``(accumulator[..., c] >= thresholds[c]) != flip[c]``.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or C is 0.
    """
    accumulator, thresholds, flip = map(np.asarray, (accumulator, thresholds, flip))
    if accumulator.dtype != np.int32 or accumulator.ndim == 0 or accumulator.shape[-1] == 0:
        raise ValueError(
            f"threshold: accumulator must be int32 with elements in its last axis, "
            f"got {accumulator.dtype} of shape {accumulator.shape}"
        )
    *lead, channels = accumulator.shape
    _check_vector("threshold", "thresholds", thresholds, np.int32, channels)
    _check_vector("threshold", "flip", flip, np.bool_, channels)
    rows = np.ascontiguousarray(accumulator).reshape(-1, channels)
    words = np.empty((len(rows), words_for(channels)), np.uint64)
    _threshold(rows, np.ascontiguousarray(thresholds), np.ascontiguousarray(flip), words)
    return words.reshape(*lead, words.shape[1])


def threshold_reference(accumulator, thresholds, flip):
    """What :func:`threshold` computes, in plain NumPy."""
    bits = (accumulator >= thresholds) != flip  # (..., C)
    return pack_reference(np.where(bits, 1, -1))


# Whole words have a loop of constant length, as in bits.pack, for the sake of vector instructions.
@numba.njit(cache=True, nogil=True)
def _threshold(accumulator, thresholds, flip, words):
    rows, channels = accumulator.shape
    whole, tail = channels // 64, channels % 64
    for row in range(rows):
        for j in range(whole):
            word = _NO_BITS
            for bit in range(64):
                c = 64 * j + bit
                is_one = (accumulator[row, c] >= thresholds[c]) != flip[c]
                word |= np.uint64(is_one) << np.uint64(bit)
            words[row, j] = word
        if tail:
            word = _NO_BITS
            for bit in range(tail):
                c = 64 * whole + bit
                is_one = (accumulator[row, c] >= thresholds[c]) != flip[c]
                word |= np.uint64(is_one) << np.uint64(bit)
            words[row, whole] = word


# ---------------------------------------------------------------------------------------- max-pool


def max_pool2d(words, channels, kernel_size, stride, padding, minimum):
    """Pooling of packed signs: the maximum of a window is the OR of its bits.

    Where ``minimum`` is set it is the AND: a pool that stands before a batch norm with negative
    gamma, which turns the order round, has taken the maximum of what are now minima. (The OR:
    Umuroglu et al. 2017, FINN, arXiv:1612.07119.)

    Parameters
    ----------
    words : (N, H, W, words_for(channels)) uint64
    channels : int
        C.
    kernel_size, stride, padding : (int, int)
        Along height and width. Padding is at most half the kernel, as in PyTorch, so that each
        window holds a pixel; positions outside the image are left out.
    minimum : (C,) bool

    Returns
    -------
    (N, OH, OW, words_for(channels)) uint64
        ``OH = (H + 2 * padding - kernel) // stride + 1``, OW likewise.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the output would be empty.
    """
    words = _words("max_pool2d", "words", words, 4)
    _check_row("max_pool2d", "words", words, "channels", channels)
    kernel_size = _pair("max_pool2d", "kernel_size", kernel_size, 1)
    stride = _pair("max_pool2d", "stride", stride, 1)
    padding = _pair("max_pool2d", "padding", padding, 0)
    if padding[0] > kernel_size[0] // 2 or padding[1] > kernel_size[1] // 2:
        raise ValueError(
            f"max_pool2d: padding must be at most half of kernel_size {kernel_size}, got {padding}"
        )
    minimum = np.asarray(minimum)
    _check_vector("max_pool2d", "minimum", minimum, np.bool_, channels)
    size = _output_size("max_pool2d", words.shape[1:3], kernel_size, stride, padding, (1, 1))
    out = np.empty((len(words), *size, words.shape[3]), np.uint64)
    use_and = from_bytes(np.packbits(minimum, bitorder="little"), channels)
    _max_pool2d(words, kernel_size, stride, padding, use_and, out)
    return out


def max_pool2d_reference(words, channels, kernel_size, stride, padding, minimum):
    """What :func:`max_pool2d` computes, in plain NumPy."""
    (kh, kw), (sy, sx), (py, px) = kernel_size, stride, padding
    turn = np.where(minimum, -1, 1)  # min(x) = -max(-x)
    border = ((0, 0), (py, py), (px, px), (0, 0))
    signs = unpack_reference(words, channels, np.int32) * turn  # (N, H, W, C)
    signs = np.pad(signs, border, constant_values=-1)  # no larger than anything in a window
    windows = np.lib.stride_tricks.sliding_window_view(signs, (kh, kw), axis=(1, 2))
    largest = windows[:, ::sy, ::sx].max(axis=(-2, -1))  # (N, OH, OW, C)
    return pack_reference(largest * turn)


@numba.njit(cache=True, nogil=True)
def _max_pool2d(words, kernel_size, stride, padding, use_and, out):
    _, height, width, _ = words.shape
    images, out_height, out_width, row_words = out.shape
    for n in range(images):
        for oy in range(out_height):
            top = oy * stride[0] - padding[0]
            for ox in range(out_width):
                left = ox * stride[1] - padding[1]
                for w in range(row_words):
                    any_set, all_set = _NO_BITS, _ALL_BITS
                    for y in range(max(top, 0), min(top + kernel_size[0], height)):
                        for x in range(max(left, 0), min(left + kernel_size[1], width)):
                            any_set |= words[n, y, x, w]
                            all_set &= words[n, y, x, w]
                    out[n, oy, ox, w] = (any_set & ~use_and[w]) | (all_set & use_and[w])


# ------------------------------------------------------------------------------------------ checks


def _words(function, name, array, axes):
    """``array`` as a contiguous array of words, or a ValueError if it is something else."""
    array = np.asarray(array)
    if array.dtype != np.uint64 or array.ndim != axes:
        raise ValueError(
            f"{function}: {name} must be uint64 with {axes} axes, "
            f"got {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array)


def _check_row(function, name, words, count_name, count):
    if count < 1:
        raise ValueError(f"{function}: {count_name} must be positive, got {count}")
    if words.shape[-1] != words_for(count):
        raise ValueError(
            f"{function}: {name} has {words.shape[-1]} words a row, "
            f"{count_name} {count} needs {words_for(count)}"
        )


def _check_vector(function, name, array, dtype, channels):
    if array.dtype != dtype or array.shape != (channels,):
        raise ValueError(
            f"{function}: {name} must be {np.dtype(dtype)} of shape ({channels},), "
            f"got {array.dtype} of shape {array.shape}"
        )


def _pair(function, name, pair, least):
    pair = tuple(pair)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{function}: {name} must be two integers >= {least}, got {pair}")
    return int(pair[0]), int(pair[1])


def _output_size(function, size, kernel_size, stride, padding, dilation):
    """Height and width after a window has slid over an image."""
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    padded = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    if min(kernel_size) < 1 or padded[0] < spans[0] or padded[1] < spans[1]:
        raise ValueError(
            f"{function}: the kernel covers {spans[0]} x {spans[1]} pixels, "
            f"the padded image has {padded[0]} x {padded[1]}"
        )
    return tuple((n - span) // s + 1 for n, span, s in zip(padded, spans, stride, strict=True))


def _row_of_ones(count):
    """The words of ``count`` signs that are all +1."""
    return from_bytes(np.packbits(np.ones(count, np.bool_), bitorder="little"), count)
