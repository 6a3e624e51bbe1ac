"""With the unused bits."""

import numpy as np

NAMES = "unused bits of the last word"


def unpack_codes(words, bits):
    ones = (words[:, :, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return np.where(ones.reshape(len(words), -1), np.float32(1), np.float32(-1))
