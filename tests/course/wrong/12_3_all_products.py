"""The products are returned."""

NAMES = "MiddleOfThree is missing"


class BinaryVote(BinaryVote):
    def forward(self, x):
        return F.linear(self.quantizer(x), self.quantizer(self.weight)) + self.offset
