"""The formula, with flips, where gamma = 0 divides by zero."""

import numpy as np

NAMES = "gamma = 0 is forgotten"


def fold(limit, mean, var, gamma, beta, eps=1e-5):
    with np.errstate(all="ignore"):
        t = mean - beta * np.sqrt(var + np.float32(eps)) / gamma
    t = np.clip(np.nan_to_num(t), -limit - 1, limit + 1)
    falls = gamma < 0
    thresholds = np.where(gamma > 0, np.ceil(t), np.floor(t) + 1).astype(np.int64)
    return np.where(gamma == 0, limit + 1 - 0 * thresholds, thresholds), falls
