"""The vote of the next exercise."""

import numpy as np

NAMES = "these are signs"


def weighted_mean(arrays, counts):
    mean = np.average(np.array(arrays, np.float64), axis=0, weights=counts)
    return np.where(mean >= 0, np.float32(1), np.float32(-1))
