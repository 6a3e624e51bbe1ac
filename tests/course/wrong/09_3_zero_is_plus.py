"""No change counts as upwards."""

import numpy as np

NAMES = "pushed upwards"


def update_bits(before, after, coin):
    return pack(np.where(after - before >= 0, 1, -1))
