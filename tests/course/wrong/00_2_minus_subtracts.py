"""-1 takes its power of two away."""

NAMES = "takes nothing away"


def to_integer(signs):
    return sum(int(s) * 2**i for i, s in enumerate(signs))
