"""The surrogate goes down again beyond 1."""

import numpy as np

NAMES = "clamp x to [-1, 1] first"


class SineSign(SineSign):
    def surrogate(self, x):
        return np.sin(np.pi / 2 * x)
