"""Exchanged."""

import numpy as np

NAMES = "+1 and -1 are exchanged"


def pack_codes(logits):
    return pack(np.where(logits >= 0, -1, 1))
