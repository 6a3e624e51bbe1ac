"""Only the gradient of x is returned."""

NAMES = "offset"


class MiddleOfThree(MiddleOfThree):
    def backward(self, grad, output, x, offset):
        to_x = (grad.reshape(*grad.shape, 1) * self.chosen).reshape(x.shape)
        return to_x, None
