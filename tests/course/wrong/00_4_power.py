"""A ^ for a product."""

NAMES = "^ is xor, no power"


def dot(a, b, k):
    return k - 2 ^ popcount(a ^ b)
