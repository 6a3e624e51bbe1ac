"""The sum of the signs."""

NAMES = "-2, 0 and 2"


def three_levels(first, second):
    return sign_ste(first) + sign_ste(second)
