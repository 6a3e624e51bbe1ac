"""The offset's gradient is a mean over the samples."""

NAMES = "sum over axis 0"


class MiddleOfThree(MiddleOfThree):
    def backward(self, grad, output, x, offset):
        to_x = (grad.reshape(*grad.shape, 1) * self.chosen).reshape(x.shape)
        return to_x, to_x.mean(0)
