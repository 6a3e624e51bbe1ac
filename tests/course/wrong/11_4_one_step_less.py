"""A product too few."""

import numpy as np

NAMES = "one product too few"


def power_iteration(product, start, steps):
    v = start / np.linalg.norm(start)
    for _ in range(steps - 1):
        v = product(v)
        v = v / np.linalg.norm(v)
    return v @ product(v), v
