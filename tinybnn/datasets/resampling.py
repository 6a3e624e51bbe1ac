"""Transforms that resample images, and one that covers a part of each.

Like those of `transforms` they are called as transform(images (B, C, H, W), rng), and do not change
their input.
"""

from __future__ import annotations

from numbers import Real

import numpy as np

from tinybnn.datasets.transforms import check_images, pair_of_sizes, whole


class RandomRotation:
    """Turn each image around its center, by an angle drawn for each.

    Each pixel is that of the nearest place, torchvision's default.

    Parameters
    ----------
    degrees : float or (float, float)
        Angles from -degrees to degrees, or between the two; positive ones turn counter-clockwise.
    fill : float
        What comes in from outside; 0, the default, is black in the pixels of a dataset, so rotate
        before `to_signed`.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) of the same dtype
    """

    def __init__(self, degrees, fill=0):
        pair = (-degrees, degrees) if isinstance(degrees, Real) else tuple(degrees)
        if len(pair) != 2 or not pair[0] <= pair[1]:
            raise ValueError(
                f"RandomRotation: degrees must be >= 0 or a rising pair, got {degrees!r}"
            )
        self.degrees, self.fill = tuple(map(float, pair)), fill

    def __call__(self, images, rng):
        check_images("RandomRotation", images)
        return rotated(images, rng.uniform(*self.degrees, len(images)), self.fill)

    def __repr__(self):
        return f"RandomRotation(degrees={self.degrees}, fill={self.fill})"


def rotated(images, degrees, fill=0):
    """Images (B, C, H, W) turned counter-clockwise by an angle each, (B,) degrees."""
    pixels = images.transpose(0, 2, 3, 1)  # (B, H, W, C)
    count, height, width, _ = pixels.shape
    down, across = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    angle = np.deg2rad(np.asarray(degrees))[:, None, None]
    cosine, sine = np.cos(angle), np.sin(angle)
    # Where each pixel of the result comes from; y points down. Rounded: 90 degrees is exact.
    rows = np.rint(np.round(down * cosine + across * sine + (height - 1) / 2, 9)).astype(np.intp)
    columns = np.rint(np.round(across * cosine - down * sine + (width - 1) / 2, 9)).astype(np.intp)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    taken = pixels[
        np.arange(count)[:, None, None],
        np.clip(rows, 0, height - 1),
        np.clip(columns, 0, width - 1),
    ]
    taken[~inside] = fill
    return taken.transpose(0, 3, 1, 2)


class Resize:
    """Images of another size, as means of pixels weighted by their distance.

    Bilinear with antialiasing, torchvision's default: where images shrink, each pixel is a mean of
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

    def __init__(self, size):
        self.size = whole("Resize", "size", size, 1) if np.ndim(size) == 0 else size
        if np.ndim(size):
            self.size = pair_of_sizes("Resize", size)

    def __call__(self, images, rng):
        check_images("Resize", images)
        height, width = images.shape[2:]
        size = self.size
        if np.ndim(size) == 0:
            short = min(height, width)
            size = (int(size * height / short), int(size * width / short))
        down, across = (_weights(n, out) for n, out in zip((height, width), size, strict=True))
        pixels = images.transpose(0, 3, 1, 2).astype(np.float32)  # (B, W, C, H)
        result = (pixels @ down.T).transpose(0, 3, 2, 1) @ across.T  # (B, OH, C, OW)
        if images.dtype.kind != "f":
            limits = np.iinfo(images.dtype)
            result = np.clip(np.rint(result), limits.min, limits.max)
        result = np.ascontiguousarray(result.transpose(0, 1, 3, 2)).astype(images.dtype)
        return result.transpose(0, 3, 1, 2)

    def __repr__(self):
        return f"Resize({self.size})"


def _weights(size, out):
    """The weights (out, size) of pixels in a row of `out`: a triangle as wide as two of them."""
    step = size / out
    reach = max(step, 1.0)
    centers = (np.arange(out) + 0.5) * step
    distance = np.abs(np.arange(size) + 0.5 - centers[:, None])
    weights = np.maximum(1.0 - distance / reach, 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


class Cutout:
    """Cover a square of each image, around a pixel drawn for each (DeVries and Taylor 2017).

    The part of the square outside the image is cut off, as in the paper.

    Parameters
    ----------
    size : int
        The side of the square.
    fill : float
        0, the default, is black in the pixels of a dataset; behind `to_signed`, 0 is gray.

    Returns
    -------
    callable
        (images (B, C, H, W), rng) -> (B, C, H, W) of the same dtype
    """

    def __init__(self, size, fill=0):
        self.size, self.fill = whole("Cutout", "size", size, 1), fill

    def __call__(self, images, rng):
        check_images("Cutout", images)
        covered = []
        for n in images.shape[2:]:
            first = rng.integers(0, n, (len(images), 1)) - self.size // 2
            covered.append((np.arange(n) >= first) & (np.arange(n) < first + self.size))
        rows, columns = covered
        pixels = images.transpose(0, 2, 3, 1).copy()  # (B, H, W, C)
        pixels[rows[:, :, None] & columns[:, None, :]] = self.fill
        return pixels.transpose(0, 3, 1, 2)

    def __repr__(self):
        return f"Cutout({self.size}, fill={self.fill})"
