"""k // 64 + 1 words."""

NAMES = "word too many"


def least_seconds(m, n, k, peak, bandwidth):
    moved = 8 * (k // 64 + 1) * (m + n) + 4 * m * n
    return max(m * n * k / peak, moved / bandwidth)
