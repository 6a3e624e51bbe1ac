"""Max-pool on packed signs: the maximum of a window of signs is the OR of its bits.

Where a batch norm with negative gamma follows, which turns the order round, a pool that stands
before it has taken the maximum of what are now minima: there it is the AND. (The OR: Umuroglu et
al. 2017, FINN, arXiv:1612.07119.) As ``a & b = ~(~a | ~b)``, one OR serves both, between two turns
of the channels that want a minimum.

Words of neighbouring pixels are neighbours in memory. So rows of the image are combined as they
are, 8 words at a time; then the row that results is combined with itself, moved by one pixel and
more; and of these windows, one at each pixel, those that the stride asks for are taken.
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

_SPEED = 4e9  # words that a fast core combines a second


def max_pool2d(
    words: ArrayLike,
    channels: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    minimum: ArrayLike,
    out: Words | None = None,
) -> Words:
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
    """What `max_pool2d` does, for the same arrays again and again, as a callable."""
    return _bound(words, channels, kernel_size, stride, padding, minimum, out)[1]


def _bound(words, channels, kernel_size, stride, padding, minimum, out):
    words = check_words("max_pool2d", "words", words, 4)
    check_row("max_pool2d", "words", words, "channels", channels)
    of = windows("max_pool2d", words.shape[1:3], kernel_size, stride, padding)
    if of.top > of.kernel_height // 2 or of.left > of.kernel_width // 2:
        raise ValueError(
            f"max_pool2d: padding must be at most half of kernel_size {of.kernel_size}, "
            f"got {of.padding}"
        )
    minimum = for_kernel(np.asarray(minimum))
    check_vector("max_pool2d", "minimum", minimum, np.bool_, channels)
    images, *_, row_words = words.shape
    out = out_array("max_pool2d", out, (images, *of.out_size, row_words), np.uint64)
    rows, row = images * of.out_height, of.padded_size[1] * row_words
    tasks = tasks_for(rows * row * sum(of.kernel_size) / _SPEED)
    memory = np.empty(tasks * 3 * (row + WORDS), np.uint64)
    arrays = words.reshape(-1), minimum, of, memory, out.reshape(-1)
    return out, parallel.bind(_pool, parallel.shares(rows, tasks), *arrays)


def max_pool2d_reference(
    words: Words,
    channels: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    minimum: ArrayLike,
) -> Words:
    """What :func:`max_pool2d` computes, in plain NumPy."""
    of = windows("max_pool2d_reference", words.shape[1:3], kernel_size, stride, padding)
    turn = np.where(minimum, -1, 1)  # min(x) = -max(-x)
    signs = unpack_reference(words, channels, np.int32) * turn  # (N, H, W, C)
    signs = with_border(signs, padding, -1)  # no larger than anything in a window
    largest = np.max([seen for _, _, seen in of.views(signs)], axis=0)  # (N, OH, OW, C)
    return pack_reference(largest * turn)


@kernel(allocates=False)
def _pool(first, end, task, words, minimum, of, memory, out):
    """Output rows first to end - 1, counted through all images; all arrays are flat.

    For each task ``memory`` has room for three rows of an image with its padding, each with 8
    words behind it: the channels that are turned, rows combined, and windows at each pixel.
    """
    row_words = (len(minimum) + 63) // 64
    row = of.width * row_words
    length = row + 2 * of.left * row_words + WORDS
    turn = task * 3 * length
    joined, pooled = turn + length, turn + 2 * length
    _tile(minimum, row_words, of.width + 2 * of.left, memory, turn)
    for i in range(joined, joined + length):  # the padding stays 0, which an OR does not notice
        memory[i] = np.uint64(0)
    for i in range(first, end):
        image, y = i // of.out_height, i % of.out_height * of.row_stride - of.top
        start, rows = max(y, 0), min(y + of.kernel_height, of.height) - max(y, 0)
        at = (image * of.height + start) * row
        _combine_rows(words, at, rows, row, memory, joined + of.left * row_words, turn)
        for j in range(0, ((of.out_width - 1) * of.column_stride + 1) * row_words, WORDS):
            any_set, row_end = load(memory, joined + j), joined + j + of.kernel_width * row_words
            for k in range(joined + j + row_words, row_end, row_words):
                any_set |= load(memory, k)
            store(memory, pooled + j, any_set ^ load(memory, turn + j))
        to = i * of.out_width * row_words
        for w in range(row_words):
            for x in range(of.out_width):
                at = pooled + x * of.column_stride * row_words
                out[to + x * row_words + w] = memory[at + w]


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
