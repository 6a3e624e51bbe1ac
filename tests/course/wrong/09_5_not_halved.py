"""1 + w is taken for the probability."""

import numpy as np

NAMES = "halve it"


def stochastic_sign(weight, uniform):
    return np.where(uniform < 1 + weight, np.float32(1), np.float32(-1))
