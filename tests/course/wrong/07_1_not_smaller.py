"""<= instead of <."""

import numpy as np

NAMES = "compare with <"


def sample_bits(p, uniform):
    return np.where(uniform <= p, 1, -1).astype(p.dtype)
