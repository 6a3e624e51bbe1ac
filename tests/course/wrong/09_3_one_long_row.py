"""All rows are packed as one."""

import numpy as np

NAMES = "one row for each row"


def update_bits(before, after, coin):
    signs = np.where(after == before, coin, np.where(after > before, 1, -1))
    return pack(signs.ravel()[None])
