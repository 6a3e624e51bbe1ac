"""1 - |x|."""

import numpy as np

NAMES = "factor 2 is missing"


def approx_gradient(x):
    return np.where(np.abs(x) <= 1, 1 - np.abs(x), 0).astype(x.dtype)
