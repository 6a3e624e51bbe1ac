"""Bits for signs."""

import numpy as np

NAMES = "1 and 0 here"


def unpack_codes(words, bits):
    ones = (words[:, :, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return ones.reshape(len(words), -1)[:, :bits].astype(np.float32)
