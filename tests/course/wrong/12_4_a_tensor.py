"""The offset of the call, a Tensor."""

NAMES = "the offset is a Tensor"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @classmethod
    def of_call(cls, call):
        return {"offset": call.inputs[1]}, {}
