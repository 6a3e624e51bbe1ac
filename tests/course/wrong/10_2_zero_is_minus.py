"""NumPy's sign of 0."""

import numpy as np

NAMES = "sign(0) is +1"


def three_levels(first, second):
    mean = (np.sign(first.data) + np.sign(second.data)) / 2
    return Tensor(mean, (first, second), lambda grad: (grad / 2, grad / 2))
