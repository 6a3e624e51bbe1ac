"""As for a regular convolution."""

NAMES = "groups are not used"


def operations(channels, filters, size, positions, groups=1, planes=0):
    products = positions * filters * channels * size**2
    return products if planes == 0 else planes * products / 64
