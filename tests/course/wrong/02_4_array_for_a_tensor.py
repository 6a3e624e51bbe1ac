"""The signs as an array, without a rule."""

import numpy as np

NAMES = "expected a Tensor"


def sign_ste(x, gradient=ste_gradient):
    return np.where(x.data >= 0, 1, -1).astype(x.dtype)
