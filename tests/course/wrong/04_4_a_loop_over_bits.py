"""Compiled, but 64 steps for each word."""

import numba
import numpy as np

NAMES = "loops over bits"


@numba.njit
def product(a, b, k):
    out = np.empty((len(a), len(b)), np.int32)
    for i in range(len(a)):
        for j in range(len(b)):
            d = 0
            for w in range(a.shape[1]):
                x = a[i, w] ^ b[j, w]
                for bit in range(64):
                    d += (x >> np.uint64(bit)) & np.uint64(1) == np.uint64(1)
            out[i, j] = k - 2 * d
    return out
