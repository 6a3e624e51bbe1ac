"""The argument is not used."""

NAMES = "even where one_bit is False"


def message_bytes(shapes, one_bit=True):
    bits = sum(s[0] * -(-math.prod(s[1:]) // 8) for s in shapes if len(s) > 1)
    return bits + sum(4 * s[0] for s in shapes if len(s) == 1)
