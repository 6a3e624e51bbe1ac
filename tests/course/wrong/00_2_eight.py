"""The example's length."""

NAMES = "only 8 signs"


def to_integer(signs):
    return sum(1 << i for i in range(8) if i < len(signs) and signs[i] > 0)
