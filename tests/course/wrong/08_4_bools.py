"""Bools for signs."""

NAMES = "pack takes signs"


def predict_words(layers, words):
    *hidden, last = layers
    for layer in hidden:
        sums = xnor_matmul(words, layer["words"], layer["k"])
        plus = (sums >= layer["thresholds"]) != layer["flipped"]
        words = pack(plus)
    return xnor_matmul(words, last["words"], last["k"])
