"""The factor pi / 2 is missing."""

import numpy as np

NAMES = "inner derivative of sin"


class SineSign(SineSign):
    def pseudo_gradient(self, x):
        return np.where(np.abs(x) <= 1, np.cos(np.pi / 2 * x), 0).astype(x.dtype)
