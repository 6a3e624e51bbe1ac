"""Resizing of images by interpolation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.autograd import as_array, reshape
from tinybnn.functional.channels import take_channels
from tinybnn.functional.convolution import pair

if TYPE_CHECKING:
    from tinybnn.typing import Pair, V


def interpolate(
    input: V,
    size: Pair | None = None,
    scale_factor: float | tuple[float, float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> V:
    """Resize images by interpolation.

    It is composed of `take_channels` and elementwise operations, so it has a packed form.

    Parameters
    ----------
    input : (N, C, H, W)
    size : int or pair of ints, optional
        Size (OH, OW) of the result; pass either this or `scale_factor`.
    scale_factor : float or pair of floats, optional
        The result has floor(H scale_factor) rows.
    mode : 'nearest' or 'bilinear'
        'nearest' takes pixel floor(i H / OH), as PyTorch does.
    align_corners : bool, optional
        For 'bilinear': align the centers of the corner pixels; by default their outer edges.

    Returns
    -------
    (N, C, OH, OW)
    """
    shape = np.shape(input)
    if len(shape) != 4:
        raise ValueError(f"interpolate: input must have the shape (N, C, H, W), got {shape}")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor")
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"interpolate: mode must be 'nearest' or 'bilinear', got {mode!r}")
    if mode == "nearest" and align_corners is not None:
        raise ValueError("interpolate: align_corners belongs to mode='bilinear'")
    if size is not None:
        size = pair("interpolate", "size", size, 1)
        steps = [n / out for n, out in zip(shape[2:], size, strict=True)]
    else:
        factors = (scale_factor, scale_factor) if np.ndim(scale_factor) == 0 else scale_factor
        size = tuple(int(n * f) for n, f in zip(shape[2:], factors, strict=True))
        if min(size) < 1:
            raise ValueError(
                f"interpolate: scale_factor={scale_factor!r} leaves no pixel of {shape[2:]}"
            )
        steps = [1.0 / f for f in factors]
    if mode == "nearest":
        rows, columns = map(_nearest, size, shape[2:], steps)
        return _take_pixels(input, rows, columns)
    return _bilinear(input, size, steps, align_corners)


def _nearest(out, n, step):
    """The source pixel of each output pixel, (out,): floor(i step), at most n - 1, as PyTorch."""
    if out in (n, 2 * n):
        return np.arange(out) * n // out
    places = np.arange(out, dtype=np.float32) * np.float32(step)
    return np.minimum(places.astype(np.intp), n - 1)


def _bilinear(x, size, steps, align_corners):
    """The bilinear interpolation of the four pixels around each output pixel."""
    dtype, corners = as_array(x).dtype, []
    for out, step, n in zip(size, steps, np.shape(x)[2:], strict=True):
        if align_corners:
            places = np.arange(out) * ((n - 1) / (out - 1) if out > 1 else 0.0)
        else:
            places = np.maximum((np.arange(out) + 0.5) * step - 0.5, 0.0)
        low = np.minimum(places.astype(np.intp), n - 1)
        share = np.clip(places - low, 0.0, 1.0).astype(dtype)
        corners.append((low, np.minimum(low + 1, n - 1), share))
    (top, bottom, down), (left, right, across) = corners
    down = down[:, None]
    upper = _take_pixels(x, top, left) * (1 - across) + _take_pixels(x, top, right) * across
    lower = _take_pixels(x, bottom, left) * (1 - across) + _take_pixels(x, bottom, right) * across
    return upper * (1 - down) + lower * down


def _take_pixels(x, rows, columns):
    """x[:, :, rows][:, :, :, columns], by `take_channels` on an image with H = W = 1."""
    n, c, h, w = np.shape(x)
    index = (np.arange(c)[:, None, None] * h + rows[:, None]) * w + columns  # (C, OH, OW)
    taken = take_channels(reshape(x, (n, c * h * w, 1, 1)), index.reshape(-1))
    return reshape(taken, (n, c, len(rows), len(columns)))
