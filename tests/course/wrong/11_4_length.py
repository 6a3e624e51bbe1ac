"""The length of the product."""

import numpy as np

NAMES = "never negative"


def power_iteration(product, start, steps):
    v = start / np.linalg.norm(start)
    for _ in range(steps):
        v = product(v)
        v = v / np.linalg.norm(v)
    return np.linalg.norm(product(v)), v
