"""A difference is counted once."""

NAMES = "counts twice"


def dot(a, b, k):
    return k - popcount(a ^ b)
