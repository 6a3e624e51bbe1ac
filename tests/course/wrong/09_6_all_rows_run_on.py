"""Rows do not begin with a new byte."""

NAMES = "each row begins with a new byte"


def message_bytes(shapes, one_bit=True):
    bits = sum(-(-math.prod(s) // 8) for s in shapes if one_bit and len(s) > 1)
    return bits + sum(4 * math.prod(s) for s in shapes if not (one_bit and len(s) > 1))
