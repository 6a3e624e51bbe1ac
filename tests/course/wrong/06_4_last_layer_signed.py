"""The signs of the scores, all of the same size."""

import numpy as np

NAMES = "sums of the last layer are signed"

_right = packed_predict


def packed_predict(layers, x):
    return np.where(_right(layers, x) >= 0, 1, -1)
