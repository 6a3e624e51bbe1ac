"""The sum is NumPy's integer."""

import numpy as np

NAMES = "fixed number of bits"


def to_integer(signs):
    return (
        np.uint64(sum(1 << i for i, s in enumerate(signs[:64]) if s > 0))
        if len(signs) <= 64
        else sum(1 << i for i, s in enumerate(signs) if s > 0)
    )
