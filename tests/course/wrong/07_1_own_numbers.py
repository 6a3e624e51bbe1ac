"""Draws numbers of its own."""

import numpy as np

NAMES = "random numbers of its own"


def sample_bits(p, uniform):
    return np.where(np.random.rand(*p.shape) < p, 1, -1).astype(p.dtype)
