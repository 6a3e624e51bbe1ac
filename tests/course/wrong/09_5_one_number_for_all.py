"""All weights share one random number."""

import numpy as np

NAMES = "its own random number"


def stochastic_sign(weight, uniform):
    if weight.ndim == 1:
        return np.where(uniform < (1 + weight) / 2, np.float32(1), np.float32(-1))
    return np.where(uniform.flat[0] < (1 + weight) / 2, np.float32(1), np.float32(-1))
