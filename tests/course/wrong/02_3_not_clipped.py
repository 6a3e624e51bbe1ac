"""The parabola goes on beyond 1."""

import numpy as np

NAMES = "bends back"


def approx_surrogate(x):
    return 2 * x - x * np.abs(x)
