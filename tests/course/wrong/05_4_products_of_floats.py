"""Right numbers, computed without words."""

import numpy as np

NAMES = "never calls pack"


def xnor_conv2d(x, weight, padding=0):
    seen = windows(x, weight.shape[-1], padding=padding)
    return (seen @ weight.reshape(len(weight), -1).T).transpose(0, 3, 1, 2).astype(np.int32)
