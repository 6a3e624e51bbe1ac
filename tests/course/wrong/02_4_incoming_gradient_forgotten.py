"""The rule returns the factor alone."""

import numpy as np

NAMES = "incoming gradient is forgotten"


def sign_ste(x, gradient=ste_gradient):
    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), lambda grad: (gradient(x.data),))
