"""OR and AND exchanged."""

NAMES = "wrong way round"

_right = fold_pooled


def fold_pooled(bits, flipped):
    return _right(bits, ~flipped)
