"""Two products."""

import numpy as np

NAMES = "square of an eigenvalue"


def power_iteration(product, start, steps):
    v = start / np.linalg.norm(start)
    for _ in range(steps):
        v = product(v)
        v = v / np.linalg.norm(v)
    return product(v) @ product(v), v
