"""Channels of float images in another order, or repeated; and repeated channels added up.

A pixel's channels lie together, so a channel that follows its predecessor is copied with it: a run.
Repeating all channels is a few long runs for each pixel; a shuffle of groups has runs of one
channel, and is a gather. In BD-Net-A (width 0.5, one image, one thread) it takes 0.35 ms in all
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

_SPEED = 3.3e9  # floats a second, of a fast core
_LONG = 8  # channels of a run that pays for its own loop


def bind(x: NDArray[np.float32], index: ArrayLike, out: NDArray[np.float32]) -> Callable[[], None]:
    """``out[..., i] = x[..., index[i]]``, for the same arrays again and again.

    Parameters
    ----------
    x : (N, H, W, C) float32, C-contiguous
    index : (D,) int
        From 0 to C - 1.
    out : (N, H, W, D) float32, C-contiguous
        Is written to.

    Returns
    -------
    callable
        Without arguments. It uses as many threads as are set now.

    Raises
    ------
    ValueError
        If an array is not as above.
    """
    index = _checked("take_channels", index, taken=("out", out), whole=("x", x))
    sizes = x.shape[-1], len(index)
    return parallel.bind(
        _take, _shares(out, index), sizes, index, _runs(index), x.reshape(-1), out.reshape(-1)
    )


def take_channels(
    x: NDArray[np.float32], index: ArrayLike, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What `bind` gives, carried out once; returns ``out``."""
    bind(for_kernel(x), index, out)()
    return out


def take_channels_reference(
    x: NDArray[np.float32], index: NDArray[np.integer[Any]]
) -> NDArray[np.float32]:
    """What `take_channels` computes, in plain NumPy."""
    return x[..., index]


def add_channels(
    x: NDArray[np.float32], index: ArrayLike, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``out[..., index[i]] += x[..., i]`` for i = 0, 1, ..., from zeros: the adjoint of taking.

    Parameters
    ----------
    x : (N, H, W, D) float32
    index : (D,) int
        From 0 to C - 1.
    out : (N, H, W, C) float32, C-contiguous
        Is written to, and returned.

    Raises
    ------
    ValueError
        If an array is not as above.
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
    """What `add_channels` computes, in plain NumPy."""
    out = np.zeros((*x.shape[:-1], channels), x.dtype)
    for i, channel in enumerate(index):
        out[..., channel] += x[..., i]
    return out


def _checked(function, index, taken, whole):
    """The index as int64; the two arrays, each with its name, must fit it and each other."""
    index, channels = for_kernel(np.asarray(index, np.int64)), whole[1].shape[-1]
    for (name, array), size in ((whole, channels), (taken, len(index))):
        check_floats(function, name, array, (*whole[1].shape[:-1], size))
    if len(index) and not 0 <= index.min() <= index.max() < channels:
        raise ValueError(
            f"{function}: index must lie from 0 to {channels - 1}, "
            f"got {index.min()} to {index.max()}"
        )
    return index


def _runs(index):
    """Where each run begins, and the end of the last; the end alone if they are short."""
    firsts = np.flatnonzero(np.diff(index, prepend=-2) != 1)
    if len(index) < _LONG * len(firsts):
        firsts = firsts[:0]
    return np.append(firsts, len(index))


def _shares(taken, index):
    """The pixels of the array with as many channels as the index, for each thread."""
    pixels = taken.size // max(1, len(index))
    return parallel.shares(pixels, min(threads.tasks_for(taken.size / _SPEED), max(pixels, 1)))


@kernel(allocates=False)
def _take(first, end, task, sizes, index, runs, x, out):
    """Pixels first to end - 1; ``runs`` has where each run begins, and the end of the last."""
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
    """As `_take`, with the sums of the pixels of x in ``out``."""
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
