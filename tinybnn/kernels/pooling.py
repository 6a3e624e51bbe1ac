"""Max-pool on packed signs: the maximum of a window of signs is the OR of its bits.

Where a batch norm with negative gamma follows, which turns the order round, a pool that stands
before it has taken the maximum of what are now minima: there it is the AND. (The OR: Umuroglu et
al. 2017, FINN, arXiv:1612.07119.) As ``a & b = ~(~a | ~b)``, one OR serves both, between two turns
of the channels that want a minimum.

Words of neighbouring pixels are neighbours in memory, so the rows of a window are combined first:
whole rows of the image, 8 words at a time. Then the pixels of a window are in one row.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tinybnn.kernels import threads
from tinybnn.kernels.bits import pack_reference, unpack_reference, words_for
from tinybnn.kernels.simd import WORDS, inlined, kernel, load, store, store_first
from tinybnn.kernels.thresholds import check_vector, out_array, tasks_for

_SPEED = 4e9  # words that a fast core combines a second


def max_pool2d(words, channels, kernel_size, stride, padding, minimum, out=None):
    """Pooling of packed signs: OR over each window, AND where ``minimum`` is set.

    Parameters
    ----------
    words : (N, H, W, words_for(channels)) uint64
    channels : int
        C.
    kernel_size, stride, padding : (int, int)
        Along height and width. Padding is at most half the kernel, as in PyTorch, so that each
        window holds a pixel; positions outside the image are left out.
    minimum : (C,) bool
    out : (N, OH, OW, words_for(channels)) uint64, optional
        Contiguous, to be written to.

    Returns
    -------
    (N, OH, OW, words_for(channels)) uint64
        ``OH = (H + 2 * padding - kernel) // stride + 1``, OW likewise.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the output would be empty.
    """
    words = check_words("max_pool2d", "words", words, 4)
    check_row("max_pool2d", "words", words, "channels", channels)
    kernel_size = pair("max_pool2d", "kernel_size", kernel_size, 1)
    stride = pair("max_pool2d", "stride", stride, 1)
    padding = pair("max_pool2d", "padding", padding, 0)
    if padding[0] > kernel_size[0] // 2 or padding[1] > kernel_size[1] // 2:
        raise ValueError(
            f"max_pool2d: padding must be at most half of kernel_size {kernel_size}, got {padding}"
        )
    minimum = np.ascontiguousarray(minimum)
    check_vector("max_pool2d", "minimum", minimum, np.bool_, channels)
    images, height, width, row_words = words.shape
    size = output_size("max_pool2d", (height, width), kernel_size, stride, padding, (1, 1))
    out = out_array("max_pool2d", out, (images, *size, row_words), np.uint64)
    rows, row = images * size[0], width * row_words
    geometry = (height, width, *size, *kernel_size, *stride, *padding)
    tasks = min(tasks_for(rows * row * kernel_size[0] / _SPEED), rows)
    memory = np.empty(max(tasks, 1) * 2 * (row + WORDS), np.uint64)
    arrays = words.reshape(-1), minimum, geometry, memory, out.reshape(-1)
    if tasks > 1:
        with threads.exclusive():
            _tasks(tasks, rows, *arrays)
    else:
        _pool(0, rows, 0, *arrays)
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


@kernel(parallel=True)
def _tasks(tasks, rows, words, minimum, geometry, memory, out):
    for task in prange(tasks):
        first, end = task * rows // tasks, (task + 1) * rows // tasks
        slot = task * (len(memory) // tasks)
        _pool(first, end, slot, words, minimum, geometry, memory, out)


@kernel(allocates=False)
def _pool(first, end, slot, words, minimum, geometry, memory, out):
    """Output rows first to end - 1, counted through all images; all arrays are flat.

    From ``slot`` on, ``memory`` has room for two rows of an image, each with 8 words behind it.
    """
    height, width, out_height, out_width, kh, kw, step_y, step_x, top, left = geometry
    row_words = (len(minimum) + 63) // 64
    row, turn = width * row_words, slot + width * row_words + WORDS
    _tile(minimum, row_words, width, memory, turn)
    for i in range(first, end):
        image, y = i // out_height, i % out_height * step_y - top
        start, stop = max(y, 0), min(y + kh, height)
        _combine_rows(words, (image * height + start) * row, stop - start, row, memory, slot, turn)
        for x in range(out_width):
            to, from_x = (i * out_width + x) * row_words, x * step_x - left
            start, stop = max(from_x, 0), min(from_x + kw, width)
            for w in range(0, row_words, WORDS):
                at = slot + start * row_words + w
                any_set = load(memory, at)
                for j in range(at + row_words, at + (stop - start) * row_words, row_words):
                    any_set |= load(memory, j)
                any_set ^= load(memory, turn + w)
                store_first(out, to + w, any_set, row_words - w)


@inlined
def _tile(minimum, row_words, width, memory, to):
    """The channels that are turned, once for each pixel of a row."""
    for j in range(row_words):
        word = np.uint64(0)
        for bit in range(min(64, len(minimum) - 64 * j)):
            word |= np.uint64(minimum[64 * j + bit]) << np.uint64(bit)
        for x in range(width):
            memory[to + x * row_words + j] = word


@inlined
def _combine_rows(words, at, rows, row, memory, to, turn):
    """OR of rows of an image, with the channels turned that want a minimum."""
    whole = row // WORDS * WORDS
    for i in range(0, whole, WORDS):
        any_set = load(words, at + i)
        turned = load(memory, turn + i)
        any_set ^= turned
        for j in range(at + row + i, at + rows * row + i, row):
            any_set |= load(words, j) ^ turned
        store(memory, to + i, any_set)
    for i in range(whole, row):
        word = words[at + i] ^ memory[turn + i]
        for j in range(at + row + i, at + rows * row + i, row):
            word |= words[j] ^ memory[turn + i]
        memory[to + i] = word


# ------------------------------------------------------------------------------------------ checks


def check_words(function, name, array, axes):
    """``array`` as a contiguous array of words, or a ValueError if it is something else."""
    array = np.asarray(array)
    if array.dtype != np.uint64 or array.ndim != axes:
        raise ValueError(
            f"{function}: {name} must be uint64 with {axes} axes, "
            f"got {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array)


def check_row(function, name, words, count_name, count):
    """A ValueError unless the last axis of ``words`` is what ``count`` bits take."""
    if count < 1:
        raise ValueError(f"{function}: {count_name} must be positive, got {count}")
    if words.shape[-1] != words_for(count):
        raise ValueError(
            f"{function}: {name} has {words.shape[-1]} words a row, "
            f"{count_name} {count} needs {words_for(count)}"
        )


def pair(function, name, pair, least):
    """Two integers as a tuple, or a ValueError if one is below ``least``."""
    pair = tuple(pair)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{function}: {name} must be two integers >= {least}, got {pair}")
    return int(pair[0]), int(pair[1])


def output_size(function, size, kernel_size, stride, padding, dilation):
    """Height and width after a window has slid over an image; a ValueError if it does not fit."""
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    padded = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    if min(kernel_size) < 1 or padded[0] < spans[0] or padded[1] < spans[1]:
        raise ValueError(
            f"{function}: the kernel covers {spans[0]} x {spans[1]} pixels, "
            f"the padded image has {padded[0]} x {padded[1]}"
        )
    return tuple((n - span) // s + 1 for n, span, s in zip(padded, spans, stride, strict=True))
