"""Rule returns nothing."""

import numpy as np

NAMES = "is a return missing"


def sign_ste(x, gradient=ste_gradient):
    def rule(grad):
        (grad * gradient(x.data),)

    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), rule)
