"""Each step begins again."""

import numpy as np

NAMES = "goes on from the last product"


def power_iteration(product, start, steps):
    v = start / np.linalg.norm(start)
    for _ in range(steps):
        u = product(v)
        u = u / np.linalg.norm(u)
    return v @ product(v), v
