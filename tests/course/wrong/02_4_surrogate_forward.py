"""The clipped line forward as well."""

import numpy as np

NAMES = "computes the clipped line"


def sign_ste(x, gradient=ste_gradient):
    line = np.clip(x.data, -1, 1)
    return Tensor(line, (x,), lambda grad: (grad * gradient(x.data),))
