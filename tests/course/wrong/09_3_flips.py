"""Whether the sign has flipped."""

import numpy as np

NAMES = "whether the sign has flipped"


def update_bits(before, after, coin):
    return pack(np.where((before >= 0) != (after >= 0), 1, -1))
