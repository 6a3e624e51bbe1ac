"""Figure 4 of BD-Net: what an image keeps on two levels, and what on three."""

from __future__ import annotations

import numpy as np

from tinybnn import plots


def otsu(gray, levels=2):
    """Thresholds that part the pixels of an image into classes of the least variance.

    With two levels Otsu's method (1979), with more its extension: of all thresholds those that make
    the variance between the classes largest.

    Parameters
    ----------
    gray : (H, W) uint8
    levels : int
        At least 2, at most 256.

    Returns
    -------
    (levels - 1,) int64
        Rising. A pixel belongs to the upper class from the threshold on, as sign(0) = +1.
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
    # Of a class of the pixels t <= p < u: its size times its squared mean, in row t and column u.
    pixels = below[None, :] - below[:, None]
    sums = (total[None, :] - total[:, None]).astype(np.float64)
    value = np.where(pixels > 0, sums**2 / np.maximum(pixels, 1), 0.0)
    value[np.tril_indices(257)] = -np.inf  # a class has at least one grey value
    best, cuts = value[0], []
    for _ in range(levels - 1):  # best[u]: of the pixels below u, with one class more each time
        split = best[:, None] + value
        cuts.append(split.argmax(0))
        best = split.max(0)
    thresholds, end = [], 256
    for cut in reversed(cuts):
        end = int(cut[end])
        thresholds.append(end)
    return np.array(thresholds[::-1])


def to_levels(gray, levels):
    """The classes of `otsu` as brightness from 0 (the darkest) to 1.

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


def to_gray(images, maximum=255):
    """Brightness of images: 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601), rounded.

    Parameters
    ----------
    images : (N, C, H, W)
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


def draw_levels(path, images, count=8):
    """Figure 4 for the first images of a set: grey, two levels, three levels, a row each."""
    gray = to_gray(images.images[:count], images.maximum)
    rows = [gray / np.float32(255), *([to_levels(g, n) for g in gray] for n in (2, 3))]
    sheet = 1 - np.concatenate(rows)[:, None]  # `plots.images` draws 0 as white
    figure = plots.figure(figsize=(8, 3.4))
    plots.images(sheet, len(gray), "grey, one bit (Otsu), three levels", ax=figure.subplots())
    plots.save(figure, path)
