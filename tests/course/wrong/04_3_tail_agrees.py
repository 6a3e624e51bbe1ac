"""XNOR, which makes ones of the tails."""

import numpy as np

NAMES = "bits that agree in the tail"


def xnor_matmul(a, b, k):
    agree = np.bitwise_count(~(a[:, None] ^ b[None])).sum(axis=-1, dtype=np.int64)
    return (2 * agree - k).astype(np.int32)
