"""Three numbers M apart."""

import numpy as np

NAMES = "must be neighbours"


class MiddleOfThree(MiddleOfThree):
    def forward(self, x, offset):
        rows = (x + offset).reshape(len(x), 3, -1)
        return np.sort(rows, axis=1)[:, 1]
