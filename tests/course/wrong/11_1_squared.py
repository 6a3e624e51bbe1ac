"""No root."""

import numpy as np

NAMES = "root of the sum of squares is missing"


def filter_normalized(direction, weight):
    if weight.ndim == 1:
        return np.zeros_like(weight)
    axes = tuple(range(1, weight.ndim))
    return (
        direction * (weight**2).sum(axes, keepdims=True) / (direction**2).sum(axes, keepdims=True)
    )
