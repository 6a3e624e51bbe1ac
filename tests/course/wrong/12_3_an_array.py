"""The values of the products, out of the graph."""

NAMES = "forward must return a Tensor, got ndarray"


class BinaryVote(BinaryVote):
    def forward(self, x):
        sums = F.linear(self.quantizer(x), self.quantizer(self.weight))
        return MiddleOfThree.apply(sums.data, self.offset.data)
