"""0 where the slope is 0."""

import numpy as np

NAMES = "does not fall back to 0"


def approx_surrogate(x):
    return np.where(np.abs(x) <= 1, 2 * x - x * np.abs(x), 0).astype(x.dtype)
