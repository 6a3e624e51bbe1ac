"""The operands alone."""

NAMES = "result is forgotten"


def least_seconds(m, n, k, peak, bandwidth):
    return max(m * n * k / peak, 8 * -(-k // 64) * (m + n) / bandwidth)
