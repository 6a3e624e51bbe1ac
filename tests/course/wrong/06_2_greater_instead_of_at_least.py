"""The sign of 0 is -1."""

import numpy as np

NAMES = "compare with >= 0"


def fold(limit, mean, var, gamma, beta, eps=1e-5):
    sums = np.arange(-limit, limit + 1)
    plus = normalized(sums[:, None], mean, var, gamma, beta, eps) > 0
    changes = plus[1:] != plus[:-1]
    changed = changes.any(axis=0)
    constant = np.where(plus[0], -limit, limit + 1)
    return np.where(changed, changes.argmax(axis=0) + 1 - limit, constant), changed & plus[0]
