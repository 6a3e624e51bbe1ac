"""The answer that Python has."""

NAMES = "ready-made"


def popcount(word):
    return word.bit_count()
