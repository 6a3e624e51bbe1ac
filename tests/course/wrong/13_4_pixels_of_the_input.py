"""A sum for each pixel of the input."""

NAMES = "pixels of the input"


def conv_ops(shape, filters, size, stride=1, padding=0, groups=1, binary=True):
    c, h, w = shape
    return h * w * filters * (c // groups) * size**2 / (64 if binary else 1)
