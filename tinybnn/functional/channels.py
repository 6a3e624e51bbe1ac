"""Channels of an image reordered, repeated, or left out.

Taking channels is linear, and so is its adjoint, which sums the gradients of all copies of a
channel. Each of the two is the gradient of the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.autograd import Function
from tinybnn.kernels import dispatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from tinybnn.typing import Array, V


class TakeChannels(Function):
    """out[:, i] = x[:, index[i]]."""

    index: Array
    saves: tuple[str, ...] = ()

    def forward(self, x: Array, index: Array) -> Array:
        self.index = index
        if (result := dispatch.take_channels(x, index)) is not None:
            return result
        return np.take(x.transpose(0, 2, 3, 1), index, axis=3).transpose(0, 3, 1, 2)

    def backward(self, grad: V, output: V, x: V) -> V:
        return AddChannels.apply(grad, index=self.index, channels=self.shapes[0][1])


class AddChannels(Function):
    """out[:, index[i]] += x[:, i], starting from zeros."""

    index: Array
    saves: tuple[str, ...] = ()

    def forward(self, x: Array, index: Array, channels: int) -> Array:
        self.index = index
        if (result := dispatch.add_channels(x, index, channels)) is not None:
            return result
        pixels = x.transpose(0, 2, 3, 1)
        sums = np.zeros((*pixels.shape[:3], channels), x.dtype)
        order = np.argsort(index, kind="stable")
        taken, first = np.unique(index[order], return_index=True)
        sums[..., taken] = np.add.reduceat(pixels[..., order], first, axis=3)
        return sums.transpose(0, 3, 1, 2)

    def backward(self, grad: V, output: V, x: V) -> V:
        return TakeChannels.apply(grad, index=self.index)


def take_channels(x: V | ArrayLike, index: Sequence[int] | Array) -> V:
    """Select channels: out[:, i] = x[:, index[i]].

    Parameters
    ----------
    x : (N, C, H, W)
    index : sequence of int
        From 0 to C - 1; a channel may occur more than once, or not at all.

    Returns
    -------
    (N, len(index), H, W)
    """
    shape, index = np.shape(x), np.asarray(index)
    if len(shape) != 4:
        raise ValueError(f"take_channels: x must have the shape (N, C, H, W), got {shape}")
    if index.ndim != 1 or index.dtype.kind not in "iu" or not index.size:
        raise ValueError(
            "take_channels: index must be a 1-D array of ints, "
            f"got {index.dtype} of shape {index.shape}"
        )
    if index.min() < 0 or index.max() >= shape[1]:
        raise ValueError(
            f"take_channels: index must lie from 0 to {shape[1] - 1}, as x has {shape[1]} "
            f"channels, got {index.min()} to {index.max()}"
        )
    return TakeChannels.apply(x, index=index)


def channel_shuffle(x: V | ArrayLike, groups: int) -> V:
    """Interleave channels so that each following group sees every preceding one.

    Channels (g, C / g) are transposed to (C / g, g): ShuffleNet (Zhang et al. 2018, Fig. 1c).

    Parameters
    ----------
    x : (N, C, H, W)
    groups : int
        g; must divide C.

    Returns
    -------
    (N, C, H, W)
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
