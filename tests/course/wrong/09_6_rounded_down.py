"""The last bits of a row are lost."""

NAMES = "round up"


def message_bytes(shapes, one_bit=True):
    bits = sum(s[0] * (math.prod(s[1:]) // 8) for s in shapes if one_bit and len(s) > 1)
    return bits + sum(4 * math.prod(s) for s in shapes if not (one_bit and len(s) > 1))
