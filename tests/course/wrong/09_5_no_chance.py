"""The sign of the weight."""

import numpy as np

NAMES = "without chance"


def stochastic_sign(weight, uniform):
    return np.where(weight >= 0, np.float32(1), np.float32(-1))
