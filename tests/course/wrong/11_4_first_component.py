"""The first component."""

import numpy as np

NAMES = "first component of A v"


def power_iteration(product, start, steps):
    v = start / np.linalg.norm(start)
    for _ in range(steps):
        v = product(v)
        v = v / np.linalg.norm(v)
    return product(v)[0], v
