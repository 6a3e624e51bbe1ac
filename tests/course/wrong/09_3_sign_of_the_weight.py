"""The sign of the new weight is sent."""

import numpy as np

NAMES = "the sign of the new weight"


def update_bits(before, after, coin):
    return pack(np.where(after >= 0, 1, -1))
