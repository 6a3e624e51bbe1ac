"""Memory layouts of arrays, and views of them for kernels; plain NumPy.

Images are (N, C, H, W) in shape and channels-last in memory: the channels of a pixel are
contiguous. A kernel that treats channels separately sees such an image as rows, one per pixel; one
that treats every number alike sees it as one long row. Neither needs a copy. For arrays of another
layout or dtype than float32 the functions return None: the plain formula handles them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tinybnn.typing import Array, Shape


def words_for(count: int) -> int:
    """Number of 64-bit words that hold ``count`` bits: ``ceil(count / 64)``.

    Raises
    ------
    ValueError
        If ``count`` is negative.
    """
    if count < 0:
        raise ValueError(f"words_for: count must not be negative, got {count}")
    return (count + 63) // 64


def for_kernel(array: Array) -> Array:
    """Return the array itself if a kernel can read it, else a copy.

    Kernels are compiled for arrays that are C-contiguous, aligned and writable. For others, such as
    a read-only memory map or the result of `np.broadcast_to`, Numba would compile each kernel
    again, if it can at all.
    """
    return array if array.flags.carray else np.array(array, order="C")


def described(array: Array) -> str:
    """Describe an array for an error message."""
    return f"{'' if array.flags.writeable else 'read-only '}{array.dtype} of shape {array.shape}"


def channel_rows(x: Array) -> NDArray[np.float32] | None:
    """View (N, C) or (N, C, H, W) float32 as rows of channels, (N * H * W, C).

    Returns None if it is not contiguous in channels-last order, or empty.
    """
    if x.dtype != np.float32 or x.ndim not in (2, 4) or not x.size:
        return None
    last = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
    return for_kernel(last.reshape(-1, x.shape[1])) if last.flags.c_contiguous else None


def channels_last_images(x: Array) -> NDArray[np.float32] | None:
    """View (N, C, H, W) float32 as images (N, H, W, C); None if not contiguous in this order."""
    if x.dtype != np.float32 or x.ndim != 4 or not x.size:
        return None
    images = x.transpose(0, 2, 3, 1)
    return for_kernel(images) if images.flags.c_contiguous else None


def channels_last(x: Array) -> Array:
    """Return (N, C) or (N, C, H, W) in channels-last order in memory, copied if necessary."""
    if x.ndim == 2:
        return np.ascontiguousarray(x)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def image(rows: Array, shape: Shape) -> Array:
    """View rows of channels, (N * H * W, C), in the shape (N, C) or (N, C, H, W)."""
    if len(shape) == 2:
        return rows
    n, c, h, w = shape
    return rows.reshape(n, h, w, c).transpose(0, 3, 1, 2)


def flat(*arrays: Array) -> list[NDArray[np.float32]] | None:
    """View arrays of one shape as rows of numbers in the same order, (n,) float32 each.

    Returns None unless they are float32 and all C-contiguous or all channels-last in memory.
    """
    orders = ((0, 1, 2, 3), (0, 2, 3, 1)) if arrays[0].ndim == 4 else (None,)
    for axes in orders:
        rows = []
        for a in arrays:
            in_order = a.transpose(axes) if axes else a
            if a.dtype == np.float32 and in_order.flags.c_contiguous:
                rows.append(in_order.reshape(-1))
        if len(rows) == len(arrays):
            return rows
    return None


def like(x: Array, row: Array) -> Array:
    """View a row from `flat` in the shape and memory order of ``x``."""
    if x.flags.c_contiguous:
        return row.reshape(x.shape)
    n, c, h, w = x.shape
    return row.reshape(n, h, w, c).transpose(0, 3, 1, 2)
