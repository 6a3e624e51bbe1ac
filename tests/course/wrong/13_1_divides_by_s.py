"""The standard deviation of NumPy as it is."""

import numpy as np

NAMES = "ddof=1"


def paired_t(first, second):
    d = first - second
    return float(d.mean() / (d.std() / np.sqrt(len(d))))
