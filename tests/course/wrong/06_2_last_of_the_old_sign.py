"""The threshold is the last sum of the old sign: argmax without + 1."""

NAMES = "too low by one"

_right = fold


def fold(limit, mean, var, gamma, beta, eps=1e-5):
    thresholds, flipped = _right(limit, mean, var, gamma, beta, eps)
    return thresholds - (abs(thresholds) < limit), flipped
