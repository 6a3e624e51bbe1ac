"""And for xor."""

NAMES = "a & b has ones"


def dot(a, b, k):
    return k - 2 * popcount(a & b)
