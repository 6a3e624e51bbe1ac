"""The signs of float32 are float64."""

import numpy as np

NAMES = "forward turns float32 into float64"


class SineSign(SineSign):
    def forward(self, x):
        return np.where(x >= 0, 1.0, -1.0)
