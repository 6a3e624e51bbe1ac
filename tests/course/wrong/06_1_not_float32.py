"""The answer of integer sums is float64."""

NAMES = "the answer is float64"

_right = normalized


def normalized(a, mean, var, gamma, beta, eps=1e-5):
    return _right(a, mean, var, gamma, beta, eps).astype(a.dtype if a.dtype == "f4" else float)
