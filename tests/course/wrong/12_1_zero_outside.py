"""The surrogate is 0 beyond 1."""

import numpy as np

NAMES = "is the sign, not 0"


class SineSign(SineSign):
    def surrogate(self, x):
        return np.where(np.abs(x) <= 1, np.sin(np.pi / 2 * x), 0).astype(x.dtype)
