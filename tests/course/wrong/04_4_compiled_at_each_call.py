"""The compiled function is made anew in each call."""

import numba
import numpy as np

NAMES = "compiled anew at each call"


def xnor_matmul_fast(a, b, k):
    @numba.njit
    def product(a, b, k):
        out = np.empty((len(a), len(b)), np.int32)
        for i in range(len(a)):
            for j in range(len(b)):
                d = 0
                for w in range(a.shape[1]):
                    x = a[i, w] ^ b[j, w]
                    while x:
                        x &= x - np.uint64(1)
                        d += 1
                out[i, j] = k - 2 * d
        return out

    return product(a, b, k)
