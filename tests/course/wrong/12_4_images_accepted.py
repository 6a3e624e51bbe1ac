"""Images are accepted."""

NAMES = "an image is accepted"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @staticmethod
    def shape(x, *, offset):
        if x.shape[0] % 3 or offset.shape != x.shape:
            raise ValueError("no")
        return Value(FLOAT, (x.shape[0] // 3,), x.single)
