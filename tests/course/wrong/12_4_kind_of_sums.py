"""The result is called sums."""

NAMES = "kind is that of integer sums"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @staticmethod
    def shape(x, *, offset):
        if len(x.shape) != 1 or x.shape[0] % 3 or offset.shape != x.shape:
            raise ValueError("no")
        return Value("sums", (x.shape[0] // 3,), x.single)
