"""One dict is returned."""

NAMES = "two dicts"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @classmethod
    def of_call(cls, call):
        return {"offset": call.constant(1)}
