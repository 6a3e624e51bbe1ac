"""The product in NumPy once more."""

import numpy as np

NAMES = "an array of all differences"


def xnor_matmul_fast(a, b, k):
    return (k - 2 * np.bitwise_count(a[:, None] ^ b).sum(axis=-1, dtype=np.int64)).astype(np.int32)
