"""Halves of floats."""

NAMES = "word / 2 is a float"


def popcount(word):
    count = 0
    while word > 0:
        if word % 2:
            count += 1
        word = word / 2
    return count
