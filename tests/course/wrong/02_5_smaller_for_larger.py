"""min for max."""

import numpy as np

NAMES = "the smaller of the two"


def ede_gradient(x, t=1.0):
    return min(1 / t, 1) * t * (1 - np.tanh(t * x) ** 2)
