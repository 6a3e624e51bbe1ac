"""Counts as uint64."""

import numpy as np

NAMES = "no negative number"


def popcount_words(words):
    bits = np.ascontiguousarray(words)[..., None].view(np.uint8)
    return np.unpackbits(bits, axis=-1).sum(axis=-1, dtype=np.uint64)
