"""The loop ends too early."""

NAMES = "until the word is 0"


def popcount(word):
    count = 0
    while word > 1:
        word &= word - 1
        count += 1
    return count
