"""All in float64, then rounded once."""

import numpy as np

NAMES = "those of float64"


def normalized(a, mean, var, gamma, beta, eps=1e-5):
    a, mean, var, gamma, beta = (np.asarray(v, float) for v in (a, mean, var, gamma, beta))
    return ((a - mean) / np.sqrt(var + eps) * gamma + beta).astype(np.float32)
