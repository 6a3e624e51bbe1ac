"""1 and 0."""

import numpy as np

NAMES = "the signs are 1 and 0"


def stochastic_sign(weight, uniform):
    return (uniform < (1 + weight) / 2).astype(np.float32)
