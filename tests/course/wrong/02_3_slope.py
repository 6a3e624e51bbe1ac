"""Slope."""

import numpy as np

NAMES = "this is approx_gradient"


def approx_surrogate(x):
    return 2 - 2 * np.abs(x)
