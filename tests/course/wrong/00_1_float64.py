"""Python floats make it float64."""

import numpy as np

NAMES = "not float32"


def sign(x):
    return np.where(x >= 0, 1.0, -1.0)
