"""The weights do not come from rng."""

import numpy as np

NAMES = "must come from rng"


class BinaryVote(BinaryVote):
    def __init__(self, in_features, out_features, rng, quantizer=quantizers.ste_sign):
        weight = np.random.default_rng().uniform(-1, 1, (3 * out_features, in_features))
        self.weight = nn.LatentParameter(weight.astype(np.float32))
        self.offset = nn.Parameter(np.zeros(3 * out_features, np.float32))
        self.quantizer = quantizer
