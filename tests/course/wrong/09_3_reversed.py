"""before - after."""

import numpy as np

NAMES = "direction is reversed"


def update_bits(before, after, coin):
    return pack(np.where(after == before, coin, np.where(before > after, 1, -1)))
