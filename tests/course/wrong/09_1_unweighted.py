"""All clients count the same."""

import numpy as np

NAMES = "more samples counts more"


def weighted_mean(arrays, counts):
    return np.mean(arrays, axis=0, dtype=np.float32)
