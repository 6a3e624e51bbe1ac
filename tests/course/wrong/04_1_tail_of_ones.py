"""The bits behind the last sign are 1."""

import numpy as np

NAMES = "the tail"


def pack(signs):
    count = signs.shape[-1]
    words = -(-count // 64)
    bits = np.ones((*signs.shape[:-1], 64 * words), np.uint64)
    bits[..., :count] = signs > 0
    bits = bits.reshape(*signs.shape[:-1], words, 64)
    return (bits << np.arange(64, dtype=np.uint64)).sum(axis=-1, dtype=np.uint64)
