"""0 and 1."""

import numpy as np

NAMES = "these are bits"


def sign(x):
    return (x >= 0).astype(np.float32)
