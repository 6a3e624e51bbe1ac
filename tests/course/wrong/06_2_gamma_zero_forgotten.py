"""A channel that never changes gets the threshold of a change at the first sum."""

import numpy as np

NAMES = "gamma = 0 is forgotten"

_right = fold


def fold(limit, mean, var, gamma, beta, eps=1e-5):
    thresholds, flipped = _right(limit, mean, var, gamma, beta, eps)
    return np.where(gamma == 0, 1 - limit * 2, thresholds), flipped
