"""Only e changes."""

import numpy as np

NAMES = "Gauss-Newton"


def hessian_vector(x, target, w1, w2, v1, v2):
    h = np.tanh(x @ w1.T)
    slope = 1 - h**2
    dh = slope * (x @ v1.T)
    de = (dh @ w2 + h @ v2) / len(x)
    dg2 = h.T @ de
    dback = de[:, None] * w2 * slope
    return dback.T @ x, dg2
