"""Float32 always."""

import numpy as np

NAMES = "turns float64 into float32"


def ste_gradient(x):
    return (np.abs(x) <= 1).astype(np.float32)
