"""The threshold is too high by one."""

NAMES = "too high by one"

_right = fold


def fold(limit, mean, var, gamma, beta, eps=1e-5):
    thresholds, flipped = _right(limit, mean, var, gamma, beta, eps)
    return thresholds + 1, flipped
