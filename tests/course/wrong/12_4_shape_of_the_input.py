"""The result has the shape of the input."""

NAMES = "each three numbers give one"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @staticmethod
    def shape(x, *, offset):
        if len(x.shape) != 1 or x.shape[0] % 3 or offset.shape != x.shape:
            raise ValueError("no")
        return x
