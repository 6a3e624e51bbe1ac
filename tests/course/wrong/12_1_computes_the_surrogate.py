"""Forward returns the sine."""

import numpy as np

NAMES = "forward returns the surrogate"


class SineSign(SineSign):
    def forward(self, x):
        return np.sin(np.pi / 2 * np.clip(x, -1, 1))
