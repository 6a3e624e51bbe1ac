"""One length for the whole array."""

import numpy as np

NAMES = "each filter has its own length"


def filter_normalized(direction, weight):
    if weight.ndim == 1:
        return np.zeros_like(weight)
    return direction * np.linalg.norm(weight) / np.linalg.norm(direction)
