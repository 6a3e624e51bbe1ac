"""The formula of the books, in float32."""

import numpy as np

NAMES = "rounds elsewhere"


def fold(limit, mean, var, gamma, beta, eps=1e-5):
    with np.errstate(all="ignore"):
        t = mean - beta * np.sqrt(var + np.float32(eps)) / gamma
    t = np.where(gamma == 0, np.where(beta >= 0, -limit, limit + 1), t)
    t = np.clip(t, -limit - 1, limit + 1)
    return np.where(gamma >= 0, np.ceil(t), np.floor(t) + 1).astype(np.int64), gamma < 0
