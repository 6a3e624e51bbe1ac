"""Whole operations."""

NAMES = "rounded down"


def operations(channels, filters, size, positions, groups=1, planes=0):
    products = positions * filters * (channels // groups) * size**2
    return products if planes == 0 else planes * products // 64
