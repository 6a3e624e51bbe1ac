"""Compared with 1/2."""

import numpy as np

NAMES = "compared with 1/2"


def pack_codes(logits):
    return pack(np.where(logits >= 0.5, 1, -1))
