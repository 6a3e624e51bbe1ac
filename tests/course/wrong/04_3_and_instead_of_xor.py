"""The places where both are +1."""

import numpy as np

NAMES = "both are -1"


def xnor_matmul(a, b, k):
    both = np.bitwise_count(a[:, None] & b[None]).sum(axis=-1, dtype=np.int64)
    return (k - 2 * both).astype(np.int32)
