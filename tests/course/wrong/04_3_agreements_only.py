"""The number of agreements instead of the sum of products."""

import numpy as np

NAMES = "number of agreements"


def xnor_matmul(a, b, k):
    differ = np.bitwise_count(a[:, None] ^ b[None]).sum(axis=-1, dtype=np.int64)
    return (k - differ).astype(np.int32)
