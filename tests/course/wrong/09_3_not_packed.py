"""Signs instead of words."""

import numpy as np

NAMES = "pack the signs"


def update_bits(before, after, coin):
    return np.where(after == before, coin, np.sign(after - before))
