"""The vector is normalized at the end only."""

import numpy as np

NAMES = "until no float holds it"


def power_iteration(product, start, steps):
    v = start
    for _ in range(steps):
        v = product(v)
    v = v / np.linalg.norm(v)
    return v @ product(v), v
