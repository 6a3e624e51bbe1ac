"""The packed form has a meaning of its own."""

import numpy as np

NAMES = "check_packed says"


class MiddleOfThreeOperation(MiddleOfThreeOperation):
    name, functions, arrays = "middle_of_three", (MiddleOfThree,), ("offset",)

    @staticmethod
    def run(x, *, offset):
        rows = (x + np.float32(0.5) + offset).reshape(len(x), -1, 3)
        return np.sort(rows, axis=2)[:, :, 1]
