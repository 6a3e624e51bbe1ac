"""One count for all words together."""

import numpy as np

NAMES = "a count of its own"


def popcount_words(words):
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8)).sum(dtype=np.int64)
