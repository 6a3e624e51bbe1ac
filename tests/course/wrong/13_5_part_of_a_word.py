"""k / 8 bytes a row."""

NAMES = "whole words"


def least_seconds(m, n, k, peak, bandwidth):
    return max(m * n * k / peak, (k / 8 * (m + n) + 4 * m * n) / bandwidth)
