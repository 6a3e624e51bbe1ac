"""Bytes in the right order of bits, read as words whose first byte is the highest."""

import numpy as np

NAMES = "big-endian"


def pack(signs):
    count = signs.shape[-1]
    bits = np.zeros((*signs.shape[:-1], -(-count // 64) * 64), bool)
    bits[..., :count] = signs > 0
    return np.packbits(bits, axis=-1, bitorder="little").view(">u8").astype(np.uint64)
