"""The values that the offset had once."""

NAMES = "must be refused"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @classmethod
    def of_call(cls, call):
        return {"offset": call.inputs[1].data}, {}
