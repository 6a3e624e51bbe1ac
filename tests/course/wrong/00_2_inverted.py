"""-1 is bit 1."""

NAMES = "bits are inverted"


def to_integer(signs):
    return sum(1 << i for i, s in enumerate(signs) if s < 0)
