"""word / 2 instead of word // 2."""

NAMES = "is a float"


def popcount(word):
    count = 0
    while word >= 1:
        if word % 2 == 1:
            count += 1
        word = word / 2
    return count
