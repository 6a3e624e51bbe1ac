"""Only 32 bits are looked at."""

NAMES = "lower 32 bits"


def popcount(word):
    return sum(word >> i & 1 for i in range(32))
