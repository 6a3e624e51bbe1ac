"""One below."""

import numpy as np

NAMES = "beyond -1 it is -1"


def approx_surrogate(x):
    return np.where(np.abs(x) <= 1, 2 * x - x * np.abs(x), 1)
