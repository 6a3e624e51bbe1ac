"""The first word alone."""

import numpy as np

NAMES = "only the first word"


def unpack_codes(words, bits):
    ones = (words[:, :, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return np.where(ones[:, 0, :bits], np.float32(1), np.float32(-1))
