"""Floats."""

import numpy as np

NAMES = "not integers"


def predict_words(layers, words):
    *hidden, last = layers
    for layer in hidden:
        sums = xnor_matmul(words, layer["words"], layer["k"])
        plus = (sums >= layer["thresholds"]) != layer["flipped"]
        words = pack(np.where(plus, 1, -1))
    return xnor_matmul(words, last["words"], last["k"]).astype(np.float32)
