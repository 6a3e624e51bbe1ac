"""10 features are accepted."""

NAMES = "10 features, no multiple of three, is accepted"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @staticmethod
    def shape(x, *, offset):
        if len(x.shape) != 1 or offset.shape != x.shape:
            raise ValueError("no")
        return Value(FLOAT, (x.shape[0] // 3,), x.single)
