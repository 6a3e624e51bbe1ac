"""A true division."""

NAMES = "makes floats"


def dual_matmul(a, first, second, k):
    return (xnor_matmul(a, first, k) + xnor_matmul(a, second, k)) / 2
