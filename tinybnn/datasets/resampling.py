"""Transforms that resample images, and one that covers a part of each.

Like those of `transforms`, they are called as transform(images (B, C, H, W), rng) and leave their
input unchanged.
"""

from __future__ import annotations

from numbers import Real

import numpy as np

from tinybnn.datasets.transforms import ImageTransform, pair_of_sizes, whole
from tinybnn.typing import Array


class RandomRotation(ImageTransform):
    """Rotate each image around its center, by an angle drawn for each.

    Pixels are those of the nearest neighbour, torchvision's default.

    Parameters
    ----------
    degrees : float or (float, float)
        Angles from -degrees to degrees, or between the two; positive ones turn counter-clockwise.
    fill : float
        Value of pixels from outside the image; 0, the default, is black in the pixels of a dataset,
        so rotate before `to_signed`.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) of the same dtype
    """

    def __init__(self, degrees: float | tuple[float, float], fill: float = 0) -> None:
        pair = (-degrees, degrees) if isinstance(degrees, Real) else tuple(degrees)
        if len(pair) != 2 or not pair[0] <= pair[1]:
            raise ValueError(
                f"RandomRotation: degrees must be >= 0 or a rising pair, got {degrees!r}"
            )
        self.degrees: tuple[float, float] = (float(pair[0]), float(pair[1]))
        self.fill: float = fill

    def _changed(self, pixels: Array, rng: np.random.Generator) -> Array:
        return rotated(pixels, rng.uniform(*self.degrees, len(pixels)), self.fill)


def rotated(pixels: Array, degrees: Array, fill: float = 0) -> Array:
    """Rotate pixels (B, H, W, C) counter-clockwise by an angle each, (B,) degrees."""
    count, height, width, _ = pixels.shape
    down, across = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    angle = np.deg2rad(np.asarray(degrees))[:, None, None]
    cosine, sine = np.cos(angle), np.sin(angle)
    # The source of each output pixel; y points down. Rounded, so that 90 degrees is exact.
    rows = np.rint(np.round(down * cosine + across * sine + (height - 1) / 2, 9)).astype(np.intp)
    columns = np.rint(np.round(across * cosine - down * sine + (width - 1) / 2, 9)).astype(np.intp)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    taken = pixels[
        np.arange(count)[:, None, None],
        np.clip(rows, 0, height - 1),
        np.clip(columns, 0, width - 1),
    ]
    taken[~inside] = fill
    return taken


class Resize(ImageTransform):
    """Resize images: bilinear with antialiasing, torchvision's default.

    Each output pixel is a mean of input pixels weighted by their distance; where images shrink, of
    all that it covers. uint8 is rounded.

    Parameters
    ----------
    size : int or (int, int)
        Height and width; an int is the shorter side, the other keeps the ratio.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, *size) of the same dtype
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        self.size: int | tuple[int, int] = (
            pair_of_sizes("Resize", size) if np.ndim(size) else whole("Resize", "size", size, 1)
        )

    def _changed(self, pixels: Array, rng: np.random.Generator | None) -> Array:
        height, width = pixels.shape[1:3]
        size = self.size
        if np.ndim(size) == 0:
            short = min(height, width)
            size = (int(size * height / short), int(size * width / short))
        down, across = (_weights(n, out) for n, out in zip((height, width), size, strict=True))
        columns = pixels.transpose(0, 2, 3, 1).astype(np.float32)  # (B, W, C, H)
        result = (columns @ down.T).transpose(0, 3, 2, 1) @ across.T  # (B, OH, C, OW)
        if pixels.dtype.kind != "f":
            limits = np.iinfo(pixels.dtype)
            result = np.clip(np.rint(result), limits.min, limits.max)
        return np.ascontiguousarray(result.transpose(0, 1, 3, 2)).astype(pixels.dtype)


def _weights(size, out):
    """Weights (out, size) of the pixels in a row: a triangle as wide as two output pixels."""
    step = size / out
    reach = max(step, 1.0)
    centers = (np.arange(out) + 0.5) * step
    distance = np.abs(np.arange(size) + 0.5 - centers[:, None])
    weights = np.maximum(1.0 - distance / reach, 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


class Cutout(ImageTransform):
    """Cover a square of each image, around a pixel drawn for each (DeVries and Taylor 2017).

    As in the paper, the square may reach over the border of the image.

    Parameters
    ----------
    size : int
        Side of the square.
    fill : float
        0, the default, is black in the pixels of a dataset; after `to_signed`, 0 is gray.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) of the same dtype
    """

    def __init__(self, size: int, fill: float = 0) -> None:
        self.size: int = whole("Cutout", "size", size, 1)
        self.fill: float = fill

    def _changed(self, pixels: Array, rng: np.random.Generator) -> Array:
        covered = []
        for n in pixels.shape[1:3]:
            first = rng.integers(0, n, (len(pixels), 1)) - self.size // 2
            covered.append((np.arange(n) >= first) & (np.arange(n) < first + self.size))
        rows, columns = covered
        pixels = pixels.copy()
        pixels[rows[:, :, None] & columns[:, None, :]] = self.fill
        return pixels
