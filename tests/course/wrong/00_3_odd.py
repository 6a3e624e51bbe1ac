"""The parity."""

NAMES = "is odd"


def popcount(word):
    odd = 0
    while word:
        word &= word - 1
        odd ^= 1
    return odd
