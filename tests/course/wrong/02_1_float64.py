"""np.where with Python's floats gives float64."""

import numpy as np

NAMES = "turns float32 into float64"


def ste_gradient(x):
    return np.where(np.abs(x) <= 1, 1.0, 0.0)
