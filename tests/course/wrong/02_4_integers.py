"""Integers, which a Tensor turns into float32."""

import numpy as np

NAMES = "turns float64 into float32"


def sign_ste(x, gradient=ste_gradient):
    signs = np.where(x.data >= 0, 1, -1)
    return Tensor(signs, (x,), lambda grad: (grad * gradient(x.data),))
