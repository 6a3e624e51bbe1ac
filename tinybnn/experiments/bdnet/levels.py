"""Figure 4 of BD-Net: images quantized to two levels and to three."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinybnn import plots
from tinybnn.datasets import Dataset
from tinybnn.typing import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def otsu(gray: NDArray[np.uint8], levels: int = 2) -> NDArray[np.int64]:
    """Find the thresholds that divide the pixels of an image into classes of least variance.

    Otsu's method (1979) for two levels, and its extension for more: the thresholds that maximize
    the variance between the classes.

    Parameters
    ----------
    gray : (H, W) uint8
    levels : int
        At least 2, at most 256.

    Returns
    -------
    (levels - 1,) int64
        Ascending. A pixel at the threshold belongs to the upper class, as sign(0) = +1.
    """
    gray = np.asarray(gray)
    if gray.dtype != np.uint8 or not gray.size:
        raise ValueError(
            f"otsu: gray must hold uint8 pixels, got {gray.dtype} of shape {gray.shape}"
        )
    if not 2 <= levels <= 256:
        raise ValueError(f"otsu: levels must be from 2 to 256, got {levels!r}")
    count = np.bincount(gray.ravel(), minlength=256)
    below = np.concatenate([[0], np.cumsum(count)])  # pixels darker than t = 0 ... 256
    total = np.concatenate([[0], np.cumsum(count * np.arange(256))])
    # Row t, column u: size times squared mean of the class of the pixels t <= p < u.
    pixels = below[None, :] - below[:, None]
    sums = (total[None, :] - total[:, None]).astype(np.float64)
    value = np.where(pixels > 0, sums**2 / np.maximum(pixels, 1), 0.0)
    value[np.tril_indices(257)] = -np.inf  # a class has at least one grey value
    best, cuts = value[0], []
    for _ in range(levels - 1):  # best[u]: for the pixels below u, with one more class each time
        split = best[:, None] + value
        cuts.append(split.argmax(0))
        best = split.max(0)
    thresholds, end = [], 256
    for cut in reversed(cuts):
        end = int(cut[end])
        thresholds.append(end)
    return np.array(thresholds[::-1])


def to_levels(gray: NDArray[np.uint8], levels: int) -> NDArray[np.float32]:
    """Quantize an image to the classes of `otsu`, as brightness from 0 (the darkest) to 1.

    Parameters
    ----------
    gray : (H, W) uint8
    levels : int

    Returns
    -------
    (H, W) float32
    """
    classes = np.searchsorted(otsu(gray, levels), gray, side="right")
    return (classes / np.float32(levels - 1)).astype(np.float32)


def to_gray(images: Array, maximum: float = 255) -> NDArray[np.uint8]:
    """Compute the brightness of images: 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601).

    Parameters
    ----------
    images : (N, C, H, W) array
        One channel or three.
    maximum : float
        The value of a white pixel.

    Returns
    -------
    (N, H, W) uint8
    """
    weights = {1: [1.0], 3: [0.299, 0.587, 0.114]}.get(images.shape[1])
    if weights is None:
        raise ValueError(f"to_gray: images must have 1 or 3 channels, got shape {images.shape}")
    gray = np.tensordot(weights, images.astype(np.float64), (0, 1))
    return np.round(gray * (255 / maximum)).astype(np.uint8)


def draw_levels(figure: Figure, images: Dataset, count: int = 8) -> None:
    """Draw Figure 4 for the first images (N, C, H, W): a row in grey, on two levels, on three."""
    gray = to_gray(images.images[:count], images.maximum)
    rows = [gray / np.float32(255), *([to_levels(g, n) for g in gray] for n in (2, 3))]
    sheet = 1 - np.concatenate(rows)[:, None]  # `plots.images` draws 0 as white
    plots.images(sheet, len(gray), "grey, one bit (Otsu), three levels", ax=figure.subplots())
