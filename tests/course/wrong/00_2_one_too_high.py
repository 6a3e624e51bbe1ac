"""Counting begins with 1."""

NAMES = "start with 1 << 0"


def to_integer(signs):
    return sum(1 << i for i, s in enumerate(signs, 1) if s > 0)
