"""No counting."""

NAMES = "0 is returned, whatever"


def popcount(word):
    return 0
