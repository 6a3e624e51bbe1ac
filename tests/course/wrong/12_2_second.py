"""The second number, unsorted."""

NAMES = "whatever its size"


class MiddleOfThree(MiddleOfThree):
    def forward(self, x, offset):
        rows = (x + offset).reshape(len(x), -1, 3)
        return rows[:, :, 1]
