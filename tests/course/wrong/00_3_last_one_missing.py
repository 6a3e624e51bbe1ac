"""The loop ends at the last 1."""

NAMES = "lowest 1 is not counted"


def popcount(word):
    count = 0
    while word & (word - 1):
        word &= word - 1
        count += 1
    return count
