"""Maximum."""

import numpy as np

NAMES = "|x| is missing"


def approx_gradient(x):
    return np.maximum(2 - 2 * x, 0)
