"""sign(0) is 0."""

import numpy as np

NAMES = "sign(0) must be +1"


class SineSign(SineSign):
    def forward(self, x):
        return np.sign(x)
