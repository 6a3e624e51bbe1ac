"""Bits are counted as bytes."""

NAMES = "a byte holds 8 of them"


def message_bytes(shapes, one_bit=True):
    return sum((1 if one_bit and len(s) > 1 else 4) * math.prod(s) for s in shapes)
