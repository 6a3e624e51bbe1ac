"""Rows are as long as in memory."""

NAMES = "on the wire it fills whole bytes"


def message_bytes(shapes, one_bit=True):
    bits = sum(s[0] * 8 * -(-math.prod(s[1:]) // 64) for s in shapes if one_bit and len(s) > 1)
    return bits + sum(4 * math.prod(s) for s in shapes if not (one_bit and len(s) > 1))
