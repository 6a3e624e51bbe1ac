"""2 - 2 x on both sides."""

import numpy as np

NAMES = "|x| is missing"


def approx_gradient(x):
    return np.where(np.abs(x) <= 1, 2 - 2 * x, 0).astype(x.dtype)
