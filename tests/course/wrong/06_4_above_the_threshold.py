"""> instead of >=."""

import numpy as np

NAMES = "compare with >="


def packed_predict(layers, x):
    words = pack(x)
    for layer in layers[:-1]:
        sums = xnor_matmul(words, layer["words"], layer["k"])
        plus = (sums > layer["thresholds"]) != layer["flipped"]
        words = pack(np.where(plus, np.float32(1), np.float32(-1)))
    return xnor_matmul(words, layers[-1]["words"], layers[-1]["k"])
