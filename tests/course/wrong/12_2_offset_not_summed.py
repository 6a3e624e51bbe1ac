"""The offset's gradient has a row for each sample."""

NAMES = "sum over axis 0"


class MiddleOfThree(MiddleOfThree):
    def backward(self, grad, output, x, offset):
        to_x = (grad.reshape(*grad.shape, 1) * self.chosen).reshape(x.shape)
        return to_x, to_x
