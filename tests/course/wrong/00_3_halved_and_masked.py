"""Halves of floats have no &."""

NAMES = "word / 2 is a float"


def popcount(word):
    count = 0
    while word:
        count += word & 1
        word = word / 2
    return count
