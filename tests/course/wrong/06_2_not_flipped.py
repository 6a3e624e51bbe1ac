"""gamma < 0 is treated as gamma > 0."""

import numpy as np

NAMES = "not flipped"

_right = fold


def fold(limit, mean, var, gamma, beta, eps=1e-5):
    thresholds, flipped = _right(limit, mean, var, gamma, beta, eps)
    return thresholds, np.zeros_like(flipped)
