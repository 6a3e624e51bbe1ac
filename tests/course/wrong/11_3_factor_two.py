"""The derivative of a square without its 2."""

import numpy as np

NAMES = "the 2 is missing"


def hessian_vector(x, target, w1, w2, v1, v2):
    h = np.tanh(x @ w1.T)
    e = (h @ w2 - target) / len(x)
    slope = 1 - h**2
    dh = slope * (x @ v1.T)
    de = (dh @ w2 + h @ v2) / len(x)
    dg2 = dh.T @ e + h.T @ de
    dback = (de[:, None] * w2 + e[:, None] * v2) * slope - e[:, None] * w2 * h * dh
    return dback.T @ x, dg2
