"""1.58 products."""

import numpy as np

NAMES = "log2(3)"


def operations(channels, filters, size, positions, groups=1, planes=0):
    products = positions * filters * (channels // groups) * size**2
    return products * (1, 1 / 64, np.log2(3) / 64)[planes]
