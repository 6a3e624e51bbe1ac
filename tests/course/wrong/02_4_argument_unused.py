"""Always the plain estimator."""

import numpy as np

NAMES = "`gradient` is not used"


def sign_ste(x, gradient=ste_gradient):
    signs = np.where(x.data >= 0, 1, -1).astype(x.dtype)
    return Tensor(signs, (x,), lambda grad: (grad * ste_gradient(x.data),))
