"""The derivative of the sine with a minus."""

import numpy as np

NAMES = "with a plus"


class SineSign(SineSign):
    def pseudo_gradient(self, x):
        return np.where(np.abs(x) <= 1, -np.pi / 2 * np.cos(np.pi / 2 * x), 0).astype(x.dtype)
