"""The loop without njit."""

import numpy as np

NAMES = "the Python interpreter runs"


def xnor_matmul_fast(a, b, k):
    out = np.empty((len(a), len(b)), np.int32)
    for i in range(len(a)):
        for j in range(len(b)):
            out[i, j] = k - 2 * sum(int(x ^ y).bit_count() for x, y in zip(a[i], b[j], strict=True))
    return out
