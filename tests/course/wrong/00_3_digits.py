"""Digits."""

NAMES = "value is not"


def popcount(word):
    return str(word).count("1")
