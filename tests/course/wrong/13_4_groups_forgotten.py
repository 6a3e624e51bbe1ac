"""Each filter sees all channels."""

NAMES = "groups are forgotten"


def conv_ops(shape, filters, size, stride=1, padding=0, groups=1, binary=True):
    c, h, w = shape
    h, w = ((n + 2 * padding - size) // stride + 1 for n in (h, w))
    return h * w * filters * c * size**2 / (64 if binary else 1)
