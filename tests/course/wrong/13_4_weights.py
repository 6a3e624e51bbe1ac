"""The number of weights."""

NAMES = "weights of the layer"


def conv_ops(shape, filters, size, stride=1, padding=0, groups=1, binary=True):
    return filters * (shape[0] // groups) * size**2 / (64 if binary else 1)
