"""|x| < 1 instead of |x| <= 1."""

import numpy as np

NAMES = "the border belongs to the inside"


def ste_gradient(x):
    return (np.abs(x) < 1).astype(x.dtype)
