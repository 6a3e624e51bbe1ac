"""The largest of the three."""

NAMES = "this is the largest"


class MiddleOfThree(MiddleOfThree):
    def forward(self, x, offset):
        rows = (x + offset).reshape(len(x), -1, 3)
        return rows.max(axis=2)
