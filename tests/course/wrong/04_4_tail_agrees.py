"""XNOR in the compiled loop: the tails count."""

import numba
import numpy as np

NAMES = "bits that agree in the tail"


@numba.njit
def product(a, b, k):
    out = np.empty((len(a), len(b)), np.int32)
    for i in range(len(a)):
        for j in range(len(b)):
            agree = np.uint64(0)
            for w in range(a.shape[1]):
                agree += count_ones(~(a[i, w] ^ b[j, w]))
            out[i, j] = 2 * np.int64(agree) - k
    return out
