"""int32 minus float32 is float64."""

import numpy as np

NAMES = "integers minus float32 is float64"


def normalized(a, mean, var, gamma, beta, eps=1e-5):
    return ((a - mean) / np.sqrt(var + np.float32(eps)) * gamma + beta).astype(np.float32)
