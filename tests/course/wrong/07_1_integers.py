"""Integers."""

import numpy as np

NAMES = "turns float32 into int64"


def sample_bits(p, uniform):
    return np.where(uniform < p, 1, -1)
