"""The gradient of the clipped part alone."""

import numpy as np

NAMES = "exchanged"


def ste_gradient(x):
    return (np.abs(x) > 1).astype(x.dtype)
