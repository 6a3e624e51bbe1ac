"""K // 64 + 1 words, also where K is a multiple of 64."""

import numpy as np

NAMES = "a word too many"


def pack(signs):
    count = signs.shape[-1]
    words = count // 64 + 1
    bits = np.zeros((*signs.shape[:-1], 64 * words), np.uint64)
    bits[..., :count] = signs > 0
    bits = bits.reshape(*signs.shape[:-1], words, 64)
    return (bits << np.arange(64, dtype=np.uint64)).sum(axis=-1, dtype=np.uint64)
