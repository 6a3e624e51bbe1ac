"""One bit is looked at."""

NAMES = "lowest bit alone"


def popcount(word):
    return word & 1
