"""Ones counted in a text."""

NAMES = "a text of ones and zeros"


def popcount(word):
    return f"{word:b}".count("1")
