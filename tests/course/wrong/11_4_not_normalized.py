"""The product is returned."""

import numpy as np

NAMES = "not brought to length 1 at the end"


def power_iteration(product, start, steps):
    v = start / np.linalg.norm(start)
    for _ in range(steps):
        v = product(v)
        v = v / np.linalg.norm(v)
    av = product(v)
    return v @ av, av
