"""The number of signs is not used."""

NAMES = "k is forgotten"


def dot(a, b, k):
    return -2 * popcount(a ^ b)
