"""Padding on one side."""

NAMES = "grows by 2 * padding"


def conv_ops(shape, filters, size, stride=1, padding=0, groups=1, binary=True):
    c, h, w = shape
    h, w = ((n + padding - size) // stride + 1 for n in (h, w))
    return h * w * filters * (c // groups) * size**2 / (64 if binary else 1)
