"""The call is refused with a ValueError."""

NAMES = "NoPackedFormError"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @classmethod
    def of_call(cls, call):
        if call.constant(1) is None:
            raise ValueError("its offset depends on the input")
        return {"offset": call.constant(1)}, {}
