"""Integrated from -1: it goes from 0 to 2."""

import numpy as np

NAMES = "constant is wrong"


def approx_surrogate(x):
    x = np.clip(x, -1, 1)
    return 1 + 2 * x - x * np.abs(x)
