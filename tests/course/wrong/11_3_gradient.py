"""The gradient itself."""

import numpy as np

NAMES = "asked for is its derivative"


def hessian_vector(x, target, w1, w2, v1, v2):
    h = np.tanh(x @ w1.T)
    e = (h @ w2 - target) / len(x)
    return (e[:, None] * w2 * (1 - h**2)).T @ x, h.T @ e
