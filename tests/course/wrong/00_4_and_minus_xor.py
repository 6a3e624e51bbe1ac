"""Two signs -1 are forgotten."""

NAMES = "not all agreements"


def dot(a, b, k):
    return popcount(a & b) - popcount(a ^ b)
