"""The loop ends at the last 1."""

NAMES = "not counted"


def popcount(word):
    count = 0
    while word & (word - 1):
        word &= word - 1
        count += 1
    return count
