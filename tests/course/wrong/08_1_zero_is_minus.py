"""> instead of >=."""

import numpy as np

NAMES = "the logit 0 becomes -1"


def pack_codes(logits):
    return pack(np.where(logits > 0, 1, -1))
