"""The ones of a | b for the differences."""

NAMES = "a | b"


def dot(a, b, k):
    return k - 2 * popcount(a | b)
