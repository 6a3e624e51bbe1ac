"""A share for each row."""

import numpy as np

NAMES = "one share for each row"


def flip_ratio(before, after):
    return np.mean((before >= 0) != (after >= 0), axis=-1)
