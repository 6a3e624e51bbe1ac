"""All bits of the words are taken for products."""

import numpy as np

NAMES = "take the true k"


def xnor_matmul(a, b, k):
    differ = np.bitwise_count(a[:, None] ^ b[None]).sum(axis=-1, dtype=np.int64)
    return (64 * a.shape[1] - 2 * differ).astype(np.int32)
