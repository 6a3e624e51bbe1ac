"""The brightness of a data set's images, to detect pictures with black and white exchanged.

Training images such as MNIST's are light drawings on a dark ground; a photograph of a pencil on
paper is the opposite. The border of an image is nearly all ground, so it is the best indicator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinybnn.typing import Array

# If more of the training images look inverted, the rule does not apply to them: photographs of
# scenes have borders of any brightness.
_MOST_ALARMS = 0.001


def brightness(images: Array, maximum: float) -> dict[str, float] | None:
    """Measure the mean brightness of training images, if it tells images from their inverses.

    Parameters
    ----------
    images : (N, C, H, W) uint8 or float32
    maximum : float
        The value of a white pixel.

    Returns
    -------
    dict or None
        ``mean`` of all pixels and ``border``, the mean of the outermost rows and columns, both from
        0 to 1. None if more than one in a thousand of the images would look inverted.
    """
    if not len(images):
        return None
    means, borders = _means(images, maximum)
    training = {"mean": round(float(means.mean()), 6), "border": round(float(borders.mean()), 6)}
    return training if np.mean(_inverted(means, borders, training)) <= _MOST_ALARMS else None


def looks_inverted(images: Array, maximum: float, training: dict[str, float]) -> NDArray[np.bool_]:
    """Tell which images are more like the inverse of the training images than like these.

    An image looks inverted if its border is nearer to the inverse of the training images' border
    than to the border itself; or, to detect badly lit paper too, if its border is lighter than
    the whole where it should be darker (or vice versa), by a quarter of the usual difference.

    Parameters
    ----------
    images : (N, C, H, W) uint8 or float32
    maximum : float
        The value of a white pixel.
    training : dict
        The result of `brightness` for the training images.

    Returns
    -------
    (N,) bool
    """
    return _inverted(*_means(images, maximum), training)


def check_brightness(value: Any, name: str) -> None:
    """Refuse a value that `brightness` cannot have returned; `name` begins the message.

    Raises
    ------
    ValueError
    """
    keys = {"mean", "border"}
    if value is not None and not (
        isinstance(value, dict)
        and value.keys() == keys
        and all(type(number) in (int, float) and 0 <= number <= 1 for number in value.values())
    ):
        raise ValueError(f"{name} must be numbers from 0 to 1 for {sorted(keys)}, got {value!r}")


def _inverted(means, borders, training):
    border, contrast = training["border"], training["mean"] - training["border"]
    nearer = (borders - 0.5) * (border - 0.5) < 0
    reversed_ = (means - borders) * contrast < -(contrast**2) / 4
    return nearer | reversed_


def _means(images, maximum):
    """The means (N,) of all pixels of each image, and of those at its border, from 0 to 1."""
    inside = images[:, :, 1:-1, 1:-1]
    n, count = len(images), images[0].size if len(images) else 1
    # uint8 is summed in integers: exactly, and without a copy of all images as floats.
    dtype = np.int64 if images.dtype == np.uint8 else np.float64
    whole, inner = (part.sum((1, 2, 3), dtype=dtype) for part in (images, inside))
    on_border = count - (inside.size // n if n else 0)
    return whole / (count * maximum), (whole - inner) / (on_border * maximum)
