"""Surrogate."""

import numpy as np

NAMES = "asked for is its slope"


def approx_gradient(x):
    return 2 * x - x * np.abs(x)
