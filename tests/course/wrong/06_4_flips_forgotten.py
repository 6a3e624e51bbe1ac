"""Falling channels are treated as rising ones."""

import numpy as np

NAMES = "flipped is forgotten"


def packed_predict(layers, x):
    words = pack(x)
    for layer in layers[:-1]:
        plus = xnor_matmul(words, layer["words"], layer["k"]) >= layer["thresholds"]
        words = pack(np.where(plus, np.float32(1), np.float32(-1)))
    return xnor_matmul(words, layers[-1]["words"], layers[-1]["k"])
