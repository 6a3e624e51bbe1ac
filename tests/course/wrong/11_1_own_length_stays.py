"""Multiplied by the length only."""

import numpy as np

NAMES = "not divided out"


def filter_normalized(direction, weight):
    if weight.ndim == 1:
        return np.zeros_like(weight)
    axes = tuple(range(1, weight.ndim))
    return direction * np.sqrt((weight**2).sum(axes, keepdims=True))
