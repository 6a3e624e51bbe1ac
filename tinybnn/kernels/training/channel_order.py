"""Reorder or repeat channels of float images, and add up repeated channels.

A pixel's channels are contiguous, so a channel that follows its predecessor is copied with it: a
run. Repeating all channels takes a few long runs per pixel; a shuffle of groups has runs of one
channel, and is a gather. In BD-Net-A (width 0.5, one image, one thread) it takes 0.35 ms in total,
where copies by NumPy take 0.45: ``tinybnn bench models``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.checks import check_floats
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.simd import kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

_SPEED = 3.3e9  # floats per second on a fast core
_LONG = 8  # least channels of a run that pays for its own loop


def bind(x: NDArray[np.float32], index: ArrayLike, out: NDArray[np.float32]) -> Callable[[], None]:
    """Prepare ``out[..., i] = x[..., index[i]]`` for repeated calls on the same arrays.

    Parameters
    ----------
    x : (N, H, W, C) float32, C-contiguous
    index : (D,) int
        From 0 to C - 1.
    out : (N, H, W, D) float32, C-contiguous
        Array for the result.

    Returns
    -------
    callable
        Takes no arguments. It uses as many threads as are set now.

    Raises
    ------
    ValueError
        If an array is not as described.
    """
    index = _checked("take_channels", index, taken=("out", out), whole=("x", x))
    sizes = x.shape[-1], len(index)
    return parallel.bind(
        _take, _shares(out, index), sizes, index, _runs(index), x.reshape(-1), out.reshape(-1)
    )


def take_channels(
    x: NDArray[np.float32], index: ArrayLike, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Copy ``out[..., i] = x[..., index[i]]`` and return ``out``; parameters as in `bind`."""
    bind(for_kernel(x), index, out)()
    return out


def take_channels_reference(
    x: NDArray[np.float32], index: NDArray[np.integer[Any]]
) -> NDArray[np.float32]:
    """Compute `take_channels` in plain NumPy. x : (..., C), index : (D,) int -> (..., D)"""
    return x[..., index]


def add_channels(
    x: NDArray[np.float32], index: ArrayLike, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Add ``out[..., index[i]] += x[..., i]`` from zeros: the adjoint of `take_channels`.

    Parameters
    ----------
    x : (N, H, W, D) float32
    index : (D,) int
        From 0 to C - 1.
    out : (N, H, W, C) float32, C-contiguous
        Array for the result.

    Returns
    -------
    (N, H, W, C) float32
        ``out``.

    Raises
    ------
    ValueError
        If an array is not as described.
    """
    x = for_kernel(x)
    index = _checked("add_channels", index, taken=("x", x), whole=("out", out))
    sizes = out.shape[-1], len(index)
    arguments = sizes, index, _runs(index), x.reshape(-1), out.reshape(-1)
    parallel.share_out(_add, _shares(x, index), *arguments)
    return out


def add_channels_reference(
    x: NDArray[np.float32], index: NDArray[np.integer[Any]], channels: int
) -> NDArray[np.float32]:
    """Compute `add_channels` in plain NumPy. x : (..., D), index : (D,) int -> (..., channels)"""
    out = np.zeros((*x.shape[:-1], channels), x.dtype)
    for i, channel in enumerate(index):
        out[..., channel] += x[..., i]
    return out


def _checked(function, index, taken, whole):
    """Return the index as int64; check it and the two arrays, each given with its name."""
    index, channels = for_kernel(np.asarray(index, np.int64)), whole[1].shape[-1]
    for (name, array), size in ((whole, channels), (taken, len(index))):
        check_floats(function, name, array, (*whole[1].shape[:-1], size))
    if len(index) and not 0 <= index.min() <= index.max() < channels:
        raise ValueError(
            f"{function}: index must be from 0 to {channels - 1}, "
            f"got {index.min()} to {index.max()}"
        )
    return index


def _runs(index):
    """Return the start of each run, and the end of the last; only the end if runs are short."""
    firsts = np.flatnonzero(np.diff(index, prepend=-2) != 1)
    if len(index) < _LONG * len(firsts):
        firsts = firsts[:0]
    return np.append(firsts, len(index))


def _shares(taken, index):
    """Divide the pixels of an array with as many channels as the index."""
    pixels = taken.size // max(1, len(index))
    return parallel.shares(pixels, min(threads.tasks_for(taken.size / _SPEED), max(pixels, 1)))


@kernel(allocates=False)
def _take(first, end, task, sizes, index, runs, x, out):
    """Copy pixels first to end - 1; ``runs`` are the start of each run, and the end of the last."""
    channels, taken = sizes
    for pixel in range(first, end):
        source = x[pixel * channels : (pixel + 1) * channels]
        target = out[pixel * taken : (pixel + 1) * taken]
        if len(runs) == 1:
            for i in range(taken):
                target[i] = source[index[i]]
        for r in range(len(runs) - 1):
            a, b = runs[r], runs[r + 1]
            values, places = source[index[a] : index[a] + b - a], target[a:b]
            for i in range(len(places)):
                places[i] = values[i]


@kernel(allocates=False)
def _add(first, end, task, sizes, index, runs, x, out):
    """Add up pixels first to end - 1 of x into ``out``; parameters as in `_take`."""
    channels, taken = sizes
    for pixel in range(first, end):
        source = x[pixel * taken : (pixel + 1) * taken]
        target = out[pixel * channels : (pixel + 1) * channels]
        for c in range(channels):
            target[c] = np.float32(0)
        if len(runs) == 1:
            for i in range(taken):
                target[index[i]] += source[i]
        for r in range(len(runs) - 1):
            a, b = runs[r], runs[r + 1]
            values, places = source[a:b], target[index[a] : index[a] + b - a]
            for i in range(len(places)):
                places[i] += values[i]
