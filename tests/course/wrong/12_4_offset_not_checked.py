"""Any offset is accepted."""

NAMES = "an offset of another length is accepted"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @staticmethod
    def shape(x, *, offset):
        if len(x.shape) != 1 or x.shape[0] % 3:
            raise ValueError("no")
        return Value(FLOAT, (x.shape[0] // 3,), x.single)
