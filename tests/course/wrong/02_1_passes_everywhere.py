"""The identity: no clipping."""

import numpy as np

NAMES = "passes everywhere"


def ste_gradient(x):
    return np.ones_like(x)
