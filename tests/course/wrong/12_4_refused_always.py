"""Input 0 of the call, which always depends on the model's input."""

NAMES = "an offset with fixed values is refused"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @classmethod
    def of_call(cls, call):
        offset = call.constant(0)
        if offset is None:
            raise deploy.NoPackedFormError("no")
        return {"offset": offset}, {}
