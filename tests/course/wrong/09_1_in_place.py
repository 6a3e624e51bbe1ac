"""The first client's array becomes the sum."""

import numpy as np

NAMES = "writes into a client's array"


def weighted_mean(arrays, counts):
    arrays[0] *= counts[0]
    for n, a in zip(counts[1:], arrays[1:], strict=True):
        arrays[0] += n * a
    return (arrays[0] / sum(counts)).astype(np.float32)
