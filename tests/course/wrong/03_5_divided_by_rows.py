"""Divided by the rows."""

import numpy as np

NAMES = "number of rows"


def flip_ratio(before, after):
    return float(np.sum((before >= 0) != (after >= 0)) / len(before))
