"""Sign too many."""

import numpy as np

NAMES = "factor sign(x) too many"


def sign_ste(x, gradient=ste_gradient):
    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), lambda grad: (grad * signs * gradient(x.data),))
