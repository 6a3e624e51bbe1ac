"""A filter's other axes are forgotten."""

NAMES = "all that lies below"


def message_bytes(shapes, one_bit=True):
    total = 0
    for s in shapes:
        if len(s) == 1:
            total += 4 * s[0]
        else:
            total += s[0] * -(-s[1] // 8) if one_bit else 4 * s[0] * s[1]
    return total
