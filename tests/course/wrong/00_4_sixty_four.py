"""A word has 64 bits."""

NAMES = "not 64"


def dot(a, b, k):
    return 64 - 2 * popcount(a ^ b)
