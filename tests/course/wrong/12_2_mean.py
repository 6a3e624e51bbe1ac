"""The mean of the three."""

NAMES = "this is the mean"


class MiddleOfThree(MiddleOfThree):
    def forward(self, x, offset):
        rows = (x + offset).reshape(len(x), -1, 3)
        return rows.mean(axis=2)
