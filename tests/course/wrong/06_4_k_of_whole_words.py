"""k is the number of bits in the words, unused ones too."""

import numpy as np

NAMES = "k is not the layer's own"


def packed_predict(layers, x):
    words = pack(x)
    for layer in layers:
        sums = xnor_matmul(words, layer["words"], 64 * words.shape[1])
        if layer is layers[-1]:
            return sums
        plus = (sums >= layer["thresholds"]) != layer["flipped"]
        words = pack(np.where(plus, np.float32(1), np.float32(-1)))
