"""Square of x."""

import numpy as np

NAMES = "the square belongs to tanh"


def ede_gradient(x, t=1.0):
    return max(1 / t, 1) * t * (1 - np.tanh(t * x**2))
