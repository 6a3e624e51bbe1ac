"""The sum of the bytes stays in the highest byte."""

NAMES = "shift it down"


def popcount_words(words):
    words = words - ((words >> ONE) & PAIRS)
    words = (words & FOURS) + ((words >> TWO) & FOURS)
    words = (words + (words >> FOUR)) & BYTES
    return words * EACH
