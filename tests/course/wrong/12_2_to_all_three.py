"""All three get the gradient."""

import numpy as np

NAMES = "each of the three gets the gradient"


class MiddleOfThree(MiddleOfThree):
    def backward(self, grad, output, x, offset):
        to_x = (grad.reshape(*grad.shape, 1) * np.ones_like(self.chosen)).reshape(x.shape)
        return to_x, to_x.sum(0)
