"""False and True."""

NAMES = "these are bits"


def sign(x):
    return x >= 0
