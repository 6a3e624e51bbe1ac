"""Channels of an image taken in another order, repeated, or left out.

Taking channels is linear, and so is its adjoint, which gives each channel the sum of what was made
of it; the two are each other's gradient.
"""

from __future__ import annotations

import itertools

import numpy as np

from tinybnn.autograd import Function
from tinybnn.functional.convolution import empty_image

_LONG = 8  # channels of a run that pays for a copy of its own


class TakeChannels(Function):
    """out[:, i] = x[:, index[i]]."""

    saves = ()

    def forward(self, x, index):
        self.index = index
        result = empty_image((len(x), len(index), *x.shape[2:]), x.dtype)
        copy_channels(x.transpose(0, 2, 3, 1), index, result.transpose(0, 2, 3, 1))
        return result

    def backward(self, grad, output, x):
        return AddChannels.apply(grad, index=self.index, channels=self.shapes[0][1])


class AddChannels(Function):
    """out[:, index[i]] += x[:, i], starting from zeros."""

    saves = ()

    def forward(self, x, index, channels):
        self.index = index
        result = empty_image((len(x), channels, *x.shape[2:]), x.dtype)
        sum_channels(x.transpose(0, 2, 3, 1), index, result.transpose(0, 2, 3, 1))
        return result

    def backward(self, grad, output, x):
        return TakeChannels.apply(grad, index=self.index)


def copy_channels(images, index, out):
    """``out[..., i] = images[..., index[i]]`` for images (N, H, W, C)."""
    runs = _runs(index)
    if len(index) < _LONG * len(runs):
        # In any other mode than this one, NumPy fills a copy of `out` first.
        np.take(images, index, axis=3, out=out, mode="clip")
        return
    for first, end in runs:
        out[..., first:end] = images[..., index[first] : index[end - 1] + 1]


def sum_channels(images, index, out):
    """``out[..., index[i]] += images[..., i]`` for i = 0, 1, ..., from zeros: the adjoint."""
    runs, out[...] = _runs(index), 0
    if len(index) < _LONG * len(runs):  # short runs: sort the channels, equal ones in their order
        order = np.argsort(index, kind="stable")
        images, index = np.take(images, order, axis=3, mode="clip"), index[order]
        runs = _runs(index)
    for first, end in runs:
        out[..., index[first] : index[end - 1] + 1] += images[..., first:end]


def _runs(index):
    """First and last + 1 place of each stretch of channels that follow one another."""
    bounds = np.append(np.flatnonzero(np.diff(index, prepend=-2) != 1), len(index))
    return list(itertools.pairwise(bounds.tolist()))


def take_channels(x, index):
    """Channel ``index[i]`` of x as channel i of the result.

    Parameters
    ----------
    x : (N, C, H, W)
    index : sequence of int
        From 0 to C - 1; a channel may be named more than once, or not at all.

    Returns
    -------
    (N, len(index), H, W)
    """
    shape, index = np.shape(x), np.asarray(index)
    if len(shape) != 4:
        raise ValueError(f"take_channels: x must have the shape (N, C, H, W), got {shape}")
    if index.ndim != 1 or index.dtype.kind not in "iu" or not index.size:
        raise ValueError(
            f"take_channels: index must be a row of ints, got {index.dtype} of shape {index.shape}"
        )
    if index.min() < 0 or index.max() >= shape[1]:
        raise ValueError(
            f"take_channels: index must lie from 0 to {shape[1] - 1}, as x has {shape[1]} "
            f"channels, got {index.min()} to {index.max()}"
        )
    return TakeChannels.apply(x, index=index)


def channel_shuffle(x, groups):
    """Let each of the groups of channels that follow read from all groups before.

    Channels (g, C / g) become (C / g, g): ShuffleNet (Zhang et al. 2018, Fig. 1c).

    Parameters
    ----------
    x : (N, C, H, W)
    groups : int
        Must divide C.
    """
    shape = np.shape(x)
    if len(shape) != 4 or not isinstance(groups, int | np.integer) or groups < 1:
        raise ValueError(
            "channel_shuffle: expects x of shape (N, C, H, W) and groups >= 1, "
            f"got {shape} and {groups!r}"
        )
    if shape[1] % groups:
        raise ValueError(f"channel_shuffle: groups={groups} must divide the {shape[1]} channels")
    return take_channels(x, np.arange(shape[1]).reshape(groups, -1).T.reshape(-1))
