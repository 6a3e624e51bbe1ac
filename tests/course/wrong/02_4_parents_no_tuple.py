"""Parents no tuple."""

import numpy as np

NAMES = "parents is a tuple"


def sign_ste(x, gradient=ste_gradient):
    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, x, lambda grad: (grad * gradient(x.data),))
