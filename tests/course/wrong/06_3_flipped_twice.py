"""The bits are flipped again after pooling."""

NAMES = "flipped once more"

_right = fold_pooled


def fold_pooled(bits, flipped):
    return _right(bits, flipped) != flipped[:, None, None]
