"""Filters of length 1."""

import numpy as np

NAMES = "filters have length 1"


def filter_normalized(direction, weight):
    if weight.ndim == 1:
        return np.zeros_like(weight)
    axes = tuple(range(1, weight.ndim))
    return direction / np.sqrt((direction**2).sum(axes, keepdims=True))
