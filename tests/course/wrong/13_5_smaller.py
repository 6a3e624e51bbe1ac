"""The smaller of the two times."""

NAMES = "smaller of the two"


def least_seconds(m, n, k, peak, bandwidth):
    return min(m * n * k / peak, (8 * -(-k // 64) * (m + n) + 4 * m * n) / bandwidth)
