"""Factor of grad."""

import numpy as np

NAMES = "taken of grad"


def sign_ste(x, gradient=ste_gradient):
    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), lambda grad: (gradient(grad),))
