"""A count."""

import numpy as np

NAMES = "number of flips"


def flip_ratio(before, after):
    return float(np.sum((before >= 0) != (after >= 0)))
