"""The first sign is in the highest bit of its word."""

import numpy as np

NAMES = "order of bits is reversed"


def pack(signs):
    count = signs.shape[-1]
    words = -(-count // 64)
    bits = np.zeros((*signs.shape[:-1], 64 * words), np.uint64)
    bits[..., :count] = signs > 0
    bits = bits.reshape(*signs.shape[:-1], words, 64)
    return (bits << np.arange(63, -1, -1).astype(np.uint64)).sum(axis=-1, dtype=np.uint64)
