"""The rule calls NumPy, which does not know Tensors."""

import numpy as np

NAMES = "backward does not work on Tensors"


class MiddleOfThree(MiddleOfThree):
    def backward(self, grad, output, x, offset):
        to_x = np.multiply(np.expand_dims(grad, 2), self.chosen).reshape(x.shape)
        return to_x, to_x.sum(0)
