"""The tent goes on below 0."""

import numpy as np

NAMES = "negative beyond 1"


def approx_gradient(x):
    return 2 - 2 * np.abs(x)
