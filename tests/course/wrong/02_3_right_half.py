"""Right half."""

NAMES = "below 0 it is mirrored"


def approx_surrogate(x):
    return 2 * x - x**2
