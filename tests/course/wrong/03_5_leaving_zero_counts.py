"""np.sign: 0 is a third value."""

import numpy as np

NAMES = "leaves 0"


def flip_ratio(before, after):
    return float(np.mean(np.sign(before) != np.sign(after)))
