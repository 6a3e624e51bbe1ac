"""Eight by index."""

NAMES = "only 8 signs"


def to_integer(signs):
    return sum(2**i for i in range(8) if signs[i] > 0)
