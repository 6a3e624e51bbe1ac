"""NumPy packs, and the rest is lost."""

import numpy as np

NAMES = "from element 64 on"


def to_integer(signs):
    padded = np.zeros(64, bool)
    padded[: len(signs[:64])] = signs[:64] > 0
    return int(np.packbits(padded, bitorder="little").view(np.uint64)[0])
