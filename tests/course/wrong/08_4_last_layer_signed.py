"""Signs for scores."""

import numpy as np

NAMES = "the scores are the sums themselves"


def predict_words(layers, words):
    *hidden, last = layers
    for layer in hidden:
        sums = xnor_matmul(words, layer["words"], layer["k"])
        plus = (sums >= layer["thresholds"]) != layer["flipped"]
        words = pack(np.where(plus, 1, -1))
    return np.where(xnor_matmul(words, last["words"], last["k"]) >= 0, 1, -1)
