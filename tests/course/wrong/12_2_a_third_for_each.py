"""Each gets a third of the gradient."""

import numpy as np

NAMES = "a third"


class MiddleOfThree(MiddleOfThree):
    def backward(self, grad, output, x, offset):
        to_x = (grad.reshape(*grad.shape, 1) * (np.ones_like(self.chosen) / 3)).reshape(x.shape)
        return to_x, to_x.sum(0)
