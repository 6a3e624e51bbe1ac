"""Only 64 bits are looked at."""

NAMES = "lower 64 bits"


def popcount(word):
    return sum(word >> i & 1 for i in range(64))
