"""Without k."""

import numpy as np

NAMES = "the factor k"


def ede_gradient(x, t=1.0):
    return t * (1 - np.tanh(t * x) ** 2)
