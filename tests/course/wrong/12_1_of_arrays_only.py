"""The surrogate is written with NumPy's functions."""

import numpy as np

NAMES = "tb.clamp and tb.sin"


class SineSign(SineSign):
    def surrogate(self, x):
        return np.sin(np.pi / 2 * np.clip(x, -1, 1))
