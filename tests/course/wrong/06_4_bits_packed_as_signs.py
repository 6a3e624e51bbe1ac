"""Bools go to pack, and neither is negative."""

NAMES = "none is negative"


def packed_predict(layers, x):
    words = pack(x)
    for layer in layers[:-1]:
        sums = xnor_matmul(words, layer["words"], layer["k"])
        words = pack((sums >= layer["thresholds"]) != layer["flipped"])
    return xnor_matmul(words, layers[-1]["words"], layers[-1]["k"])
