"""Multiplies with the reciprocal of the standard deviation."""

import numpy as np

NAMES = "rounds twice"


def normalized(a, mean, var, gamma, beta, eps=1e-5):
    scale = np.float32(1) / np.sqrt(var + np.float32(eps))
    return (np.asarray(a, np.float32) - mean) * scale * gamma + beta
