"""A product that is no sum of bits to the compiler."""

NAMES = "no product of bits"


class BinaryVote(BinaryVote):
    def forward(self, x):
        rows, weight = self.quantizer(x), self.quantizer(self.weight)
        sums = (rows.reshape(len(x), 1, -1) * weight).sum(2)
        return MiddleOfThree.apply(sums, self.offset)
