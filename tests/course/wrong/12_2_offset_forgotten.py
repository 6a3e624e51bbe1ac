"""The offset is not added."""

import numpy as np

NAMES = "offset is not added"


class MiddleOfThree(MiddleOfThree):
    def forward(self, x, offset):
        return np.sort(x.reshape(len(x), -1, 3), axis=2)[:, :, 1]
