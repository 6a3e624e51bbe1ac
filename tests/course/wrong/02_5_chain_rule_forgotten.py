"""The inner derivative is missing."""

import numpy as np

NAMES = "chain rule"


def ede_gradient(x, t=1.0):
    return max(1 / t, 1) * (1 - np.tanh(t * x) ** 2)
