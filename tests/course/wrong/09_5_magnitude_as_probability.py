"""The magnitude as the probability."""

import numpy as np

NAMES = "probability of +1 is |w|"


def stochastic_sign(weight, uniform):
    return np.where(uniform < np.abs(weight), np.float32(1), np.float32(-1))
