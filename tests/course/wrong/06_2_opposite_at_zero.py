"""Falling channels take the threshold of rising ones, negated."""

NAMES = "where the norm is exactly 0"

_right = fold


def fold(limit, mean, var, gamma, beta, eps=1e-5):
    thresholds, flipped = _right(limit, mean, var, gamma, beta, eps)
    exact = normalized(thresholds - 1, mean, var, gamma, beta, eps) == 0
    return thresholds - (flipped & exact), flipped
