"""Only the last axis."""

import numpy as np

NAMES = "only the last axis"


def filter_normalized(direction, weight):
    if weight.ndim == 1:
        return np.zeros_like(weight)
    wanted = np.linalg.norm(weight, axis=-1, keepdims=True)
    return direction * wanted / np.linalg.norm(direction, axis=-1, keepdims=True)
