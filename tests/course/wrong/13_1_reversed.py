"""second - first."""

import numpy as np

NAMES = "sign is reversed"


def paired_t(first, second):
    d = np.array([b - a for a, b in zip(first, second, strict=True)])
    return float(d.mean() / (d.std(ddof=1) / len(d) ** 0.5))
