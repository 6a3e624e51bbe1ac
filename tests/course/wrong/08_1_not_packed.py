"""Signs for words."""

import numpy as np

NAMES = "the signs are not packed"


def pack_codes(logits):
    return np.where(logits >= 0, 1, -1)
