"""The sum of the bytes stays in the highest byte."""

NAMES = "shift it down"


def popcount_words(words):
    words = words - ((words >> ONE) & PAIRS)  # noqa: F821
    words = (words & FOURS) + ((words >> TWO) & FOURS)  # noqa: F821
    words = (words + (words >> FOUR)) & BYTES  # noqa: F821
    return words * EACH  # noqa: F821
