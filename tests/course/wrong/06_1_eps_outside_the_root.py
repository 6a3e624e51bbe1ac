"""eps is added to the standard deviation, not to the variance."""

import numpy as np

NAMES = "eps stands outside the root"


def normalized(a, mean, var, gamma, beta, eps=1e-5):
    a = np.asarray(a, np.float32)
    return (a - mean) / (np.sqrt(var) + np.float32(eps)) * gamma + beta
