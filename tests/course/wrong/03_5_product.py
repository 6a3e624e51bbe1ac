"""The product below 0."""

import numpy as np

NAMES = "product below 0"


def flip_ratio(before, after):
    return float(np.mean(before * after < 0))
