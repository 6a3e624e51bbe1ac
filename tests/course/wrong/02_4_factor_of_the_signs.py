"""The pseudo-gradient at the output: |sign| <= 1 everywhere."""

import numpy as np

NAMES = "that of the signs"


def sign_ste(x, gradient=ste_gradient):
    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), lambda grad: (grad * gradient(signs),))
