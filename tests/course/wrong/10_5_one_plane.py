"""The second plane is free."""

NAMES = "the second plane is not counted"


def operations(channels, filters, size, positions, groups=1, planes=0):
    products = positions * filters * (channels // groups) * size**2
    return products / 64 if planes else products
