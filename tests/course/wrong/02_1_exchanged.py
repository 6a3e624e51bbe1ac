"""Exchanged."""

import numpy as np

NAMES = "inside and outside are exchanged"


def ste_gradient(x):
    return (np.abs(x) >= 1).astype(x.dtype)
