"""v is normalized first."""

import numpy as np

NAMES = "brought to length 1 first"


def difference_product(gradient, w, v, h=1e-4):
    v = v / np.linalg.norm(v)
    return (gradient(w + h * v) - gradient(w - h * v)) / (2 * h)
