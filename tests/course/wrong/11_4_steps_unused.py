"""Always a thousand steps."""

import numpy as np

NAMES = "`steps` is not used"


def power_iteration(product, start, steps):
    v = start / np.linalg.norm(start)
    for _ in range(1000):
        v = product(v)
        v = v / np.linalg.norm(v)
    return v @ product(v), v
