"""The cosine of x."""

import numpy as np

NAMES = "has its own argument"


class SineSign(SineSign):
    def pseudo_gradient(self, x):
        return np.where(np.abs(x) <= 1, np.pi / 2 * np.cos(x), 0).astype(x.dtype)
