"""The product is of the latent weights."""

NAMES = "quantize them"


class BinaryVote(BinaryVote):
    def forward(self, x):
        sums = F.linear(self.quantizer(x), self.weight)
        return MiddleOfThree.apply(sums, self.offset)
