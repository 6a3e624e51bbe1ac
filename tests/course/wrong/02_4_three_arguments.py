"""Three arguments."""

import numpy as np

NAMES = "takes grad alone"


def sign_ste(x, gradient=ste_gradient):
    def backward(grad, output, x):
        return (grad * gradient(x),)

    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), backward)
