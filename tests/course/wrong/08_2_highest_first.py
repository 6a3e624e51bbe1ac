"""The highest bit first."""

import numpy as np

NAMES = "sign 0 is its lowest bit"


def unpack_codes(words, bits):
    ones = (words[:, :, None] >> np.arange(63, -1, -1).astype(np.uint64)) & np.uint64(1)
    return np.where(ones.reshape(len(words), -1)[:, :bits], np.float32(1), np.float32(-1))
