"""The loop ends too early."""

NAMES = "until the word is 0"


def popcount(word):
    count = 0
    while word > 1:
        count += word & 1
        word >>= 1
    return count
