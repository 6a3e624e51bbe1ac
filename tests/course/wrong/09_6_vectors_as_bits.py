"""Batch norms as bits."""

NAMES = "they always travel as float32"


def message_bytes(shapes, one_bit=True):
    if not one_bit:
        return sum(4 * math.prod(s) for s in shapes)
    return sum((s[0] if len(s) > 1 else 1) * -(-math.prod(s[len(s) > 1 :]) // 8) for s in shapes)
