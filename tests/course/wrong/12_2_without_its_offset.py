"""The offset decides, and is not returned."""

import numpy as np

NAMES = "without its offset"


class MiddleOfThree(MiddleOfThree):
    def forward(self, x, offset):
        rows = (x + offset).reshape(len(x), -1, 3)
        middle = np.argsort(rows, axis=2, kind="stable")[:, :, 1:2]
        return np.take_along_axis(x.reshape(rows.shape), middle, axis=2)[:, :, 0]
