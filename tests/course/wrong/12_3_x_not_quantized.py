"""x itself is multiplied."""

NAMES = "quantize it"


class BinaryVote(BinaryVote):
    def forward(self, x):
        sums = F.linear(x, self.quantizer(self.weight))
        return MiddleOfThree.apply(sums, self.offset)
