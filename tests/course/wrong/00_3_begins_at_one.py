"""The counter begins with 1."""

NAMES = "one too many"


def popcount(word):
    count = 1
    while word:
        word &= word - 1
        count += 1
    return count
