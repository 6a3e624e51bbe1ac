"""Divided by S instead of its root."""

NAMES = "square root of S only"


def paired_t(first, second):
    d = first - second
    return float(d.mean() / (d.std(ddof=1) / len(d)))
