"""No known mistake."""

NAMES = "value is not as expected"


def popcount(word):
    return 7
