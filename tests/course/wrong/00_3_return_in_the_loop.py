"""The loop runs once."""

NAMES = "inside of the loop"


def popcount(word):
    count = 0
    while word:
        word &= word - 1
        count += 1
        return count
    return 0
