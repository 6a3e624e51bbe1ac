"""The incoming gradient is not used."""

NAMES = "chain rule"


class MiddleOfThree(MiddleOfThree):
    def backward(self, grad, output, x, offset):
        to_x = self.chosen.reshape(x.shape)
        return to_x, to_x.sum(0)
