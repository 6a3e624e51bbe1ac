"""The rule returns an array instead of a tuple of one array."""

import numpy as np

NAMES = "tuple with one array"


def sign_ste(x, gradient=ste_gradient):
    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), lambda grad: grad * gradient(x.data))
