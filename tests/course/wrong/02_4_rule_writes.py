"""Rule writes."""

import numpy as np

NAMES = "the rule writes into grad"


def sign_ste(x, gradient=ste_gradient):
    def rule(grad):
        grad *= gradient(x.data)
        return (grad,)

    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), rule)
