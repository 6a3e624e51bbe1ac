"""The cosine goes on beyond 1."""

import numpy as np

NAMES = "slope is not 0 beyond 1"


class SineSign(SineSign):
    def pseudo_gradient(self, x):
        return np.pi / 2 * np.cos(np.pi / 2 * x)
