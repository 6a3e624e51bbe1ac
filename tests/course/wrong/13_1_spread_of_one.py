"""Not divided by the root of the number of seeds."""

NAMES = "spread of single differences"


def paired_t(first, second):
    d = first - second
    return float(d.mean() / d.std(ddof=1))
