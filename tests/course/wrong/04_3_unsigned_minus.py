"""k minus an unsigned number."""

import numpy as np

NAMES = "make the counts int64"


def xnor_matmul(a, b, k):
    differ = np.bitwise_count(a[:, None] ^ b[None]).sum(axis=-1, dtype=np.uint64)
    return k - 2 * differ
