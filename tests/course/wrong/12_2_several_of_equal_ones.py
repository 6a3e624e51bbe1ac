"""All numbers equal to the result get the gradient."""

NAMES = "only one of them was chosen"


class MiddleOfThree(MiddleOfThree):
    saves = ("inputs", "output")

    def backward(self, grad, output, x, offset):
        equal = ((x + offset).reshape(*output.shape, 3) == output[:, :, None]).astype(x.dtype)
        to_x = (grad.reshape(*grad.shape, 1) * equal).reshape(x.shape)
        return to_x, to_x.sum(0)
