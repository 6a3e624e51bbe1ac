"""Integer sums to packed signs: what is left of a batch norm and a sign.

``sign(gamma * (acc - mean) / std + beta)`` changes once as the integer ``acc`` grows, so it is one
comparison a channel; a negative gamma turns it round (Umuroglu et al. 2017, FINN,
arXiv:1612.07119).
"""

from __future__ import annotations

import math

import numba
import numpy as np

from tinybnn.kernels import parallel, threads
from tinybnn.kernels.bits import pack_reference, words_for
from tinybnn.kernels.simd import INTEGERS, at_most, inlined, kernel, load

_SPEED = 1e10  # sums a second, of a fast core
_PART = 256  # rows that are compared in all channels before the next ones: they stay in cache


def threshold(accumulator, thresholds, flip, out=None):
    """Integer sums to packed signs.

    Parameters
    ----------
    accumulator : (..., C) int32
    thresholds : (C,) int32
    flip : (C,) bool
    out : (..., words_for(C)) uint64, optional
        Contiguous, to be written to.

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
    check_vector("threshold", "thresholds", thresholds, np.int32, channels)
    check_vector("threshold", "flip", flip, np.bool_, channels)
    out = out_array("threshold", out, (*lead, words_for(channels)), np.uint64)
    rows = accumulator.size // channels
    arrays = (
        np.ascontiguousarray(accumulator).reshape(-1), np.ascontiguousarray(thresholds),
        np.ascontiguousarray(flip), out.reshape(-1),
    )  # fmt: skip
    tasks = tasks_for(accumulator.size / _SPEED)
    parallel.share_out(_compare, parallel.shares(rows, tasks), *arrays)
    return out


def threshold_reference(accumulator, thresholds, flip):
    """What :func:`threshold` computes, in plain NumPy."""
    bits = (accumulator >= thresholds) != flip  # (..., C)
    return pack_reference(np.where(bits, 1, -1))


@kernel(allocates=False)
def _compare(first, end, task, sums, thresholds, flip, words):
    """Rows first to end - 1; all arrays are flat."""
    channels = len(thresholds)
    row_words = (channels + 63) // 64
    for start in range(first, end, _PART):
        stop = min(start + _PART, end)
        # A word of all rows and then the next one: its 64 thresholds stay in registers.
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
    """Bit i is sums[at + i] >= thresholds[c + i], for 16 channels."""
    return at_most(load(thresholds, c), load(sums, at))


@inlined
def _reached_of_some(sums, at, thresholds, c, count):
    """The same for ``count`` channels, of which the last ones may be fewer than 16."""
    word, whole = np.uint64(0), count // INTEGERS * INTEGERS
    for i in range(0, whole, INTEGERS):
        word |= _reached(sums, at + i, thresholds, c + i) << np.uint64(i)
    for i in range(whole, count):
        word |= np.uint64(sums[at + i] >= thresholds[c + i]) << np.uint64(i)
    return word


@inlined
def _bits_of(flags, first, count):
    word = np.uint64(0)
    for i in range(count):
        word |= np.uint64(flags[first + i]) << np.uint64(i)
    return word


# -------------------------------------------------------------------------------- sharing out work

# Seconds of work that are worth a further thread. A parallel loop costs a start and a wait, which
# depend on the threading layer: empty, it takes 3 microseconds with OpenMP and 65 with workqueue,
# whose threads sleep meanwhile and can be some hundred microseconds late.
_WORTH_A_THREAD = {"omp": 10e-6, "tbb": 20e-6, "workqueue": 500e-6}


def tasks_for(seconds):
    """Among how many tasks to share out work that one core does in so many seconds.

    Returns
    -------
    int
        From 1 to `threads.count`.
    """
    if seconds < 2 * min(_WORTH_A_THREAD.values()):
        return 1
    try:
        layer = numba.threading_layer()
    except ValueError:  # the threads have not started, and to start them costs more than a loop
        layer = "omp"
    return max(1, min(threads.count(), int(seconds / _WORTH_A_THREAD[layer])))


# ------------------------------------------------------------------------------- arrays for vectors

_LINE = 64  # bytes of a cache line, and of a vector


def aligned(shape, dtype):
    """An array without values that begins with a cache line.

    NumPy's arrays begin anywhere, and then vectors lie across two lines, which costs twice the time
    to load or to store them: 10% of a product of short rows.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


# ------------------------------------------------------------------------------------------ checks


def check_vector(function, name, array, dtype, channels):
    """A ValueError unless ``array`` is (channels,) of ``dtype``."""
    if array.dtype != dtype or array.shape != (channels,):
        raise ValueError(
            f"{function}: {name} must be {np.dtype(dtype)} of shape ({channels},), "
            f"got {array.dtype} of shape {array.shape}"
        )


def out_array(function, out, shape, dtype):
    """Memory for a result: new, or what the caller gave, or a ValueError if that does not fit."""
    if out is None:
        # To find the beginning of a line takes a microsecond, more than it saves in a small array.
        return aligned(shape, dtype) if math.prod(shape) > 2048 else np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"{function}: out must be contiguous {np.dtype(dtype)} of shape {shape}, "
            f"got {out.dtype} of shape {out.shape}"
        )
    return out
