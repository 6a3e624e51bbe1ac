"""No sum."""

import numpy as np

NAMES = "not added up"


def kl_to_coin(logits):
    size = np.abs(logits)
    small = np.exp(-size)
    kl = np.log(2) - np.log1p(small) - size * small / (1 + small)
    return kl
