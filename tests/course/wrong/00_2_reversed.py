"""The first sign is the highest bit."""

NAMES = "order of the bits is reversed"


def to_integer(signs):
    return int("".join("1" if s > 0 else "0" for s in signs), 2)
