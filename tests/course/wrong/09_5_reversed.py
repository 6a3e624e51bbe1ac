"""The wrong side of the comparison."""

import numpy as np

NAMES = "minus the weight"


def stochastic_sign(weight, uniform):
    return np.where(uniform < (1 + weight) / 2, np.float32(-1), np.float32(1))
