"""An offset that depends on the input is not refused."""

NAMES = "must be refused"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @classmethod
    def of_call(cls, call):
        return {"offset": call.constant(1)}, {}
