"""Integers."""

import numpy as np

NAMES = "layers compute with float32"


def unpack_codes(words, bits):
    ones = (words[:, :, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return np.where(ones.reshape(len(words), -1)[:, :bits], 1, -1)
