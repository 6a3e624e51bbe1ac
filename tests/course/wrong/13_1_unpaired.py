"""Two unrelated groups of seeds."""

import numpy as np

NAMES = "unrelated groups"


def paired_t(first, second):
    variances = np.var(first, ddof=1) / len(first) + np.var(second, ddof=1) / len(second)
    return float((np.mean(first) - np.mean(second)) / np.sqrt(variances))
