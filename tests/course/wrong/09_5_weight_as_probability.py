"""The weight itself as the probability."""

import numpy as np

NAMES = "probability of +1 is the weight itself"


def stochastic_sign(weight, uniform):
    return np.where(uniform < weight, np.float32(1), np.float32(-1))
