"""Counting, and then moving."""

NAMES = "times are added"


def least_seconds(m, n, k, peak, bandwidth):
    return m * n * k / peak + (8 * -(-k // 64) * (m + n) + 4 * m * n) / bandwidth
