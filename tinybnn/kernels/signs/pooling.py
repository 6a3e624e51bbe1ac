"""Max-pool packed signs: the maximum of a window of signs is the OR of its bits.

The OR is FINN's (Umuroglu et al. 2017, arXiv:1612.07119). A channel whose batch norm has a negative
gamma reverses the order, so there the maximum becomes a minimum: the AND. Since
``a & b = ~(~a | ~b)``, one OR serves both kinds of channels, with the bits of the minimum channels
inverted before and after.

Words of adjacent pixels are adjacent in memory. So rows of the image are combined 8 words at a
time; the resulting row is combined with itself, shifted by one pixel and more; and of these
windows, one at each pixel, those that the stride asks for are taken. `max_pool2d_reference` is the
plain NumPy version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.kernels.machine import parallel
from tinybnn.kernels.machine.checks import (
    check_row,
    check_vector,
    check_words,
    out_array,
)
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.simd import WORDS, inlined, kernel, load, store
from tinybnn.kernels.machine.threads import tasks_for
from tinybnn.kernels.machine.windows import windows, with_border
from tinybnn.kernels.signs.bits import pack_reference, unpack_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from tinybnn.typing import Words

_SPEED = 4e9  # words combined per second on a fast core


def max_pool2d(
    words: ArrayLike,
    channels: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    minimum: ArrayLike,
    out: Words | None = None,
) -> Words:
    """Pool packed signs: OR over each window, AND where ``minimum`` is set.

    Parameters
    ----------
    words : (N, H, W, words_for(channels)) uint64
    channels : int
        C.
    kernel_size, stride, padding : (int, int)
        Along height and width. Padding is at most half the kernel, as in PyTorch, so that each
        window contains a pixel; positions outside the image are ignored.
    minimum : (C,) bool
        Channels whose minimum is taken.
    out : (N, OH, OW, words_for(channels)) uint64, optional
        Contiguous array for the result.

    Returns
    -------
    (N, OH, OW, words_for(channels)) uint64
        ``OH = (H + 2 * padding - kernel) // stride + 1``, OW likewise.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not match, or the output would be empty.
    """
    out, work = _bound(words, channels, kernel_size, stride, padding, minimum, out)
    work()
    return out


def bind(
    words: ArrayLike,
    channels: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    minimum: ArrayLike,
    out: Words,
) -> Callable[[], None]:
    """Prepare `max_pool2d` for repeated calls on the same arrays; return a callable."""
    return _bound(words, channels, kernel_size, stride, padding, minimum, out)[1]


def _bound(words, channels, kernel_size, stride, padding, minimum, out):
    words = check_words("max_pool2d", "words", words, 4)
    check_row("max_pool2d", "words", words, "channels", channels)
    window = windows("max_pool2d", words.shape[1:3], kernel_size, stride, padding)
    if window.top > window.kernel_height // 2 or window.left > window.kernel_width // 2:
        raise ValueError(
            f"max_pool2d: padding must be at most half of kernel_size {window.kernel_size}, "
            f"got {window.padding}"
        )
    minimum = for_kernel(np.asarray(minimum))
    check_vector("max_pool2d", "minimum", minimum, np.bool_, channels)
    images, *_, row_words = words.shape
    out = out_array("max_pool2d", out, (images, *window.out_size, row_words), np.uint64)
    rows, row = images * window.out_height, window.padded_size[1] * row_words
    tasks = tasks_for(rows * row * sum(window.kernel_size) / _SPEED)
    memory = np.empty(tasks * 3 * (row + WORDS), np.uint64)
    arrays = words.reshape(-1), minimum, window, memory, out.reshape(-1)
    return out, parallel.bind(_pool, parallel.shares(rows, tasks), *arrays)


def max_pool2d_reference(
    words: Words,
    channels: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    minimum: ArrayLike,
) -> Words:
    """Compute :func:`max_pool2d` in plain NumPy; shapes as there."""
    window = windows("max_pool2d_reference", words.shape[1:3], kernel_size, stride, padding)
    turn = np.where(minimum, -1, 1)  # min(x) = -max(-x)
    signs = unpack_reference(words, channels, np.int32) * turn  # (N, H, W, C)
    signs = with_border(signs, padding, -1)  # no larger than anything in a window
    largest = np.max([seen for _, _, seen in window.views(signs)], axis=0)  # (N, OH, OW, C)
    return pack_reference(largest * turn)


@kernel(allocates=False)
def _pool(first, end, task, words, minimum, window, memory, out):
    """Compute output rows first to end - 1, numbered across all images; all arrays are flat.

    For each task ``memory`` has room for three rows of a padded image, each followed by 8 words:
    the inverted channels, the combined rows, and the windows at each pixel.
    """
    row_words = (len(minimum) + 63) // 64
    row = window.width * row_words
    length = row + 2 * window.left * row_words + WORDS
    turn = task * 3 * length
    joined, pooled = turn + length, turn + 2 * length
    _repeat_mask(minimum, row_words, window.width + 2 * window.left, memory, turn)
    for i in range(joined, joined + length):  # the padding stays 0, which is neutral for OR
        memory[i] = np.uint64(0)
    for i in range(first, end):
        image, y = i // window.out_height, i % window.out_height * window.row_stride - window.top
        start, rows = max(y, 0), min(y + window.kernel_height, window.height) - max(y, 0)
        at = (image * window.height + start) * row
        _combine_rows(words, at, rows, row, memory, joined + window.left * row_words, turn)
        for j in range(0, ((window.out_width - 1) * window.column_stride + 1) * row_words, WORDS):
            any_set, row_end = (
                load(memory, joined + j),
                joined + j + window.kernel_width * row_words,
            )
            for k in range(joined + j + row_words, row_end, row_words):
                any_set |= load(memory, k)
            store(memory, pooled + j, any_set ^ load(memory, turn + j))
        to = i * window.out_width * row_words
        for w in range(row_words):
            for x in range(window.out_width):
                at = pooled + x * window.column_stride * row_words
                out[to + x * row_words + w] = memory[at + w]


@inlined
def _repeat_mask(minimum, row_words, width, memory, to):
    """Repeat the mask of minimum channels for each pixel of a row."""
    for j in range(row_words):
        word = np.uint64(0)
        for bit in range(min(64, len(minimum) - 64 * j)):
            word |= np.uint64(minimum[64 * j + bit]) << np.uint64(bit)
        for x in range(width):
            memory[to + x * row_words + j] = word


@inlined
def _combine_rows(words, at, rows, row, memory, to, turn):
    """OR rows of an image, with the minimum channels inverted."""
    whole = row // WORDS * WORDS
    for i in range(0, whole, WORDS):
        turned = load(memory, turn + i)
        any_set = load(words, at + i) ^ turned
        for j in range(at + row + i, at + rows * row + i, row):
            any_set |= load(words, j) ^ turned
        store(memory, to + i, any_set)
    for i in range(whole, row):
        word = words[at + i] ^ memory[turn + i]
        for j in range(at + row + i, at + rows * row + i, row):
            word |= words[j] ^ memory[turn + i]
        memory[to + i] = word
