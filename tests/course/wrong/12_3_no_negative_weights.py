"""The weights lie between 0 and 1."""

import numpy as np

NAMES = "uniform between -1 and 1"


class BinaryVote(BinaryVote):
    def __init__(self, in_features, out_features, rng, quantizer=quantizers.ste_sign):
        weight = rng.uniform(0, 1, (3 * out_features, in_features))
        self.weight = nn.LatentParameter(weight.astype(np.float32))
        self.offset = nn.Parameter(np.zeros(3 * out_features, np.float32))
        self.quantizer = quantizer
