"""As with weights 0 and 1."""

NAMES = "two signs -1"


def dot(a, b, k):
    return popcount(a & b)
