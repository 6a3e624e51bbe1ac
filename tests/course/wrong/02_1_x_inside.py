"""X inside."""

import numpy as np

NAMES = "inside it is 1, not x"


def ste_gradient(x):
    return np.where(np.abs(x) <= 1, x, 0)
