"""Clipped too late."""

import numpy as np

NAMES = "clip x first"


def approx_surrogate(x):
    return np.clip(2 * x - x * np.abs(x), -1, 1)
