"""The pairs are torn apart."""

import numpy as np

NAMES = "tears the pairs apart"


def paired_t(first, second):
    d = np.sort(first) - np.sort(second)
    return float(d.mean() / (d.std(ddof=1) / len(d) ** 0.5))
