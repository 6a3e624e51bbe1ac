"""The sign bit of -0.0 is copied."""

import numpy as np

NAMES = "-0.0 == 0.0"


def sign(x):
    return np.where(np.isnan(x), np.float32(-1), np.copysign(np.float32(1), x))
