"""How bright a data set's images are, to tell a picture in which black and white are exchanged.

Training images such as MNIST's are light drawings on a dark ground; a photograph of a pencil on
paper is the opposite. The border of an image is nearly all ground, so it tells most.
"""

from __future__ import annotations

import numpy as np

# Of the training images, at most this share may look inverted: else the rule says nothing, as for
# photographs of the world, whose borders are of any brightness.
_MOST_ALARMS = 0.001


def brightness(images, maximum):
    """The mean brightness of training images, where it tells images from their inverses.

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
    found = {"mean": round(float(means.mean()), 6), "border": round(float(borders.mean()), 6)}
    if np.mean(_inverted(means, borders, found)) > _MOST_ALARMS:
        return None
    return found


def looks_inverted(images, maximum, training):
    """Which images are more like the inverse of the training images than like these.

    An image looks inverted if its border is nearer to the inverse of the training images' border
    than to the border itself; or, which finds badly lit paper too, if its border is lighter than
    the whole where it should be darker (or the other way round), by a quarter of the usual
    difference.

    Parameters
    ----------
    images : (N, C, H, W) uint8 or float32
    maximum : float
        The value of a white pixel.
    training : dict
        What `brightness` gave for the training images.

    Returns
    -------
    (N,) bool
    """
    return _inverted(*_means(images, maximum), training)


def check_brightness(found, what):
    """Refuse what `brightness` cannot have given: neither None nor its two numbers.

    Raises
    ------
    ValueError
    """
    if found is None:
        return
    names = {"mean", "border"}
    if (
        not isinstance(found, dict)
        or found.keys() != names
        or not all(type(v) in (int, float) and 0 <= v <= 1 for v in found.values())
    ):
        raise ValueError(f"{what} must be numbers from 0 to 1 for {sorted(names)}, got {found!r}")


def _inverted(means, borders, training):
    border, contrast = training["border"], training["mean"] - training["border"]
    nearer = (borders - 0.5) * (border - 0.5) < 0
    reversed_ = (means - borders) * contrast < -(contrast**2) / 4
    return nearer | reversed_


def _means(images, maximum):
    """Of each image the mean of all pixels, and of those at its border, from 0 to 1."""
    inside = images[:, :, 1:-1, 1:-1]
    n, count = len(images), images[0].size if len(images) else 1
    # uint8 is summed in integers: exactly, and without a copy of all images as floats.
    dtype = np.int64 if images.dtype == np.uint8 else np.float64
    whole, inner = (part.sum((1, 2, 3), dtype=dtype) for part in (images, inside))
    on_border = count - (inside.size // n if n else 0)
    return whole / (count * maximum), (whole - inner) / (on_border * maximum)
