"""np.sign of the difference."""

import numpy as np

NAMES = "np.sign gives 0"


def sample_bits(p, uniform):
    return np.sign(p - uniform)
