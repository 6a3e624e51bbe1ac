"""planes = 0 is multiplied like the others."""

NAMES = "nothing is counted"


def operations(channels, filters, size, positions, groups=1, planes=0):
    products = positions * filters * (channels // groups) * size**2
    return planes * products / 64
