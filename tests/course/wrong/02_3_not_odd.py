"""2 x - x**2 on both sides."""

import numpy as np

NAMES = "not odd"


def approx_surrogate(x):
    x = np.clip(x, -1, 1)
    return 2 * x - x**2
