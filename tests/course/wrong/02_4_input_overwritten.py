"""Input overwritten."""

import numpy as np

NAMES = "writes into x.data"


def sign_ste(x, gradient=ste_gradient):
    x.data[:] = np.where(x.data >= 0, 1, -1)
    return Tensor(x.data, (x,), lambda grad: (grad * gradient(x.data),))
