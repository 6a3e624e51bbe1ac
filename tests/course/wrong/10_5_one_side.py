"""Taps of one row."""

NAMES = "not size"


def operations(channels, filters, size, positions, groups=1, planes=0):
    products = positions * filters * (channels // groups) * size
    return products if planes == 0 else planes * products / 64
