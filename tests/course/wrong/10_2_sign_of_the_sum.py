"""One sign, of the sum."""

NAMES = "this is one sign"


def three_levels(first, second):
    return sign_ste(first + second)
