"""XNOR with ~, which makes the number negative."""

NAMES = "negative"


def dot(a, b, k):
    return 2 * popcount(~(a ^ b)) - k
