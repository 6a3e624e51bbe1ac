"""No draw at all."""

import numpy as np

NAMES = "likelier value"


def sample_bits(p, uniform):
    return np.where(p >= 0.5, 1, -1).astype(p.dtype)
