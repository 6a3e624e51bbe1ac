"""Scale and offset are computed first, as one does for speed."""

import numpy as np

NAMES = "keep the order"


def normalized(a, mean, var, gamma, beta, eps=1e-5):
    scale = gamma / np.sqrt(var + np.float32(eps))
    return np.asarray(a, np.float32) * scale + (beta - mean * scale)
