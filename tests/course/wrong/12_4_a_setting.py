"""The offset becomes a setting."""

NAMES = "the settings {}"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    @classmethod
    def of_call(cls, call):
        return {}, {"offset": call.constant(1)}
