"""Exchanged."""

import numpy as np

NAMES = "+1 and -1 are exchanged"


def sample_bits(p, uniform):
    return np.where(uniform >= p, 1, -1).astype(p.dtype)
