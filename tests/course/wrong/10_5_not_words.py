"""A sign is as costly as a float."""

NAMES = "64 of them are one"


def operations(channels, filters, size, positions, groups=1, planes=0):
    products = positions * filters * (channels // groups) * size**2
    return products * max(planes, 1)
