"""Agreements are counted for differences."""

NAMES = "exchanged"


def dot(a, b, k):
    return 2 * popcount(a ^ b) - k
