"""Compare integer sums with thresholds: batch norm and sign in one integer comparison.

``sign(gamma * (acc - mean) / std + beta)`` changes once as the integer ``acc`` grows, so one
comparison per channel computes it; a negative gamma inverts it (Umuroglu et al. 2017, FINN,
arXiv:1612.07119).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.kernels.machine import parallel
from tinybnn.kernels.machine.checks import check_vector, out_array
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.simd import INTEGERS, at_most, inlined, kernel, load
from tinybnn.kernels.machine.threads import tasks_for
from tinybnn.kernels.signs.bits import pack_reference, words_for

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import Words

_SPEED = 1e10  # sums per second on a fast core
_PART = 256  # rows compared in all channels before the next ones, so that they stay in cache


def threshold(
    accumulator: ArrayLike, thresholds: ArrayLike, flip: ArrayLike, out: Words | None = None
) -> Words:
    """Compare integer sums with thresholds and pack the resulting signs.

    Parameters
    ----------
    accumulator : (..., C) int32
    thresholds : (C,) int32
    flip : (C,) bool
    out : (..., words_for(C)) uint64, optional
        Contiguous array for the result.

    Returns
    -------
    (..., words_for(C)) uint64
        Bit c is ``(accumulator[..., c] >= thresholds[c]) != flip[c]``.

    Raises
    ------
    ValueError
        If a dtype or a shape does not match, or C is 0.
    """
    accumulator, thresholds, flip = map(np.asarray, (accumulator, thresholds, flip))
    if accumulator.dtype != np.int32 or accumulator.ndim == 0 or accumulator.shape[-1] == 0:
        raise ValueError(
            f"threshold: accumulator must be int32 with elements in its last axis, "
            f"got {accumulator.dtype} of shape {accumulator.shape}"
        )
    *lead, channels = accumulator.shape
    check_vector("threshold", "thresholds", thresholds, np.int32, channels)
    check_vector("threshold", "flip", flip, np.bool_, channels)
    out = out_array("threshold", out, (*lead, words_for(channels)), np.uint64)
    rows = accumulator.size // channels
    arrays = (
        for_kernel(accumulator).reshape(-1), for_kernel(thresholds), for_kernel(flip),
        out.reshape(-1),
    )  # fmt: skip
    tasks = tasks_for(accumulator.size / _SPEED)
    parallel.share_out(_compare, parallel.shares(rows, tasks), *arrays)
    return out


def threshold_reference(
    accumulator: NDArray[np.int32], thresholds: NDArray[np.int32], flip: NDArray[np.bool_]
) -> Words:
    """Compute :func:`threshold` in plain NumPy; shapes as there."""
    bits = (accumulator >= thresholds) != flip  # (..., C)
    return pack_reference(np.where(bits, 1, -1))


@kernel(allocates=False)
def _compare(first, end, task, sums, thresholds, flip, words):
    """Compare rows first to end - 1; all arrays are flat."""
    channels = len(thresholds)
    row_words = (channels + 63) // 64
    for start in range(first, end, _PART):
        stop = min(start + _PART, end)
        # One word of all rows before the next one: its 64 thresholds stay in registers.
        for j in range(row_words):
            c, count = 64 * j, min(64, channels - 64 * j)
            turned = _bits_of(flip, c, count)
            for row in range(start, stop):
                at = row * channels + c
                if count == 64:
                    word = _reached(sums, at, thresholds, c)
                    word |= _reached(sums, at + 16, thresholds, c + 16) << np.uint64(16)
                    word |= _reached(sums, at + 32, thresholds, c + 32) << np.uint64(32)
                    word |= _reached(sums, at + 48, thresholds, c + 48) << np.uint64(48)
                else:
                    word = _reached_of_some(sums, at, thresholds, c, count)
                words[row * row_words + j] = word ^ turned


@inlined
def _reached(sums, at, thresholds, c):
    """Return bits, bit i is sums[at + i] >= thresholds[c + i], for 16 channels."""
    return at_most(load(thresholds, c), load(sums, at))


@inlined
def _reached_of_some(sums, at, thresholds, c, count):
    """Return the same bits for ``count`` channels."""
    word, whole = np.uint64(0), count // INTEGERS * INTEGERS
    for i in range(0, whole, INTEGERS):
        word |= _reached(sums, at + i, thresholds, c + i) << np.uint64(i)
    for i in range(whole, count):
        word |= np.uint64(sums[at + i] >= thresholds[c + i]) << np.uint64(i)
    return word


@inlined
def _bits_of(flags, first, count):
    """Pack ``count`` flags from ``first`` on into a word."""
    word = np.uint64(0)
    for i in range(count):
        word |= np.uint64(flags[first + i]) << np.uint64(i)
    return word
