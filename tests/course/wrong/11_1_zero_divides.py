"""A filter of zeros becomes NaN."""

import numpy as np

NAMES = "has no direction, and stays 0"


def filter_normalized(direction, weight):
    if weight.ndim == 1:
        return np.zeros_like(weight)
    axes = tuple(range(1, weight.ndim))
    length = np.sqrt((direction**2).sum(axes, keepdims=True))
    return direction / length * np.sqrt((weight**2).sum(axes, keepdims=True))
