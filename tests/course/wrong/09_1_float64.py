"""The mean is not rounded to float32."""

import numpy as np

NAMES = "does not return float32"


def weighted_mean(arrays, counts):
    return np.average(np.array(arrays, np.float64), axis=0, weights=counts)
