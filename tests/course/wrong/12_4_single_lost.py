"""The result is never one for all samples."""

NAMES = "is lost"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @staticmethod
    def shape(x, *, offset):
        if len(x.shape) != 1 or x.shape[0] % 3 or offset.shape != x.shape:
            raise ValueError("no")
        return Value(FLOAT, (x.shape[0] // 3,))
