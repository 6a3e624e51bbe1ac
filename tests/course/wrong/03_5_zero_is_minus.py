"""0 counts as below."""

import numpy as np

NAMES = "compare with >= 0"


def flip_ratio(before, after):
    return float(np.mean((before > 0) != (after > 0)))
