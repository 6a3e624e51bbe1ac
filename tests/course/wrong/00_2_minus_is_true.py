"""No comparison."""

NAMES = "-1 counts as true"


def to_integer(signs):
    return sum(1 << i for i, s in enumerate(signs) if s)
