"""All bits are counted."""

NAMES = "ones and zeros together"


def popcount(word):
    count = 0
    while word:
        word >>= 1
        count += 1
    return count
