"""Lengths of columns."""

import numpy as np

NAMES = "columns are scaled"


def filter_normalized(direction, weight):
    if weight.ndim == 1:
        return np.zeros_like(weight)
    return direction * np.linalg.norm(weight, axis=0) / np.linalg.norm(direction, axis=0)
