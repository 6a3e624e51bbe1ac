"""Channels and filters are divided."""

NAMES = "groups divide the number of filters as well"


def operations(channels, filters, size, positions, groups=1, planes=0):
    products = positions * (filters // groups) * (channels // groups) * size**2
    return products if planes == 0 else planes * products / 64
