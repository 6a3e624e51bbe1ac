"""Twice i."""

NAMES = "not 2 * i"


def to_integer(signs):
    return sum(2 * i for i, s in enumerate(signs) if s > 0)
