"""The sum of both."""

NAMES = "the sum of both products"


def dual_matmul(a, first, second, k):
    return xnor_matmul(a, first, k) + xnor_matmul(a, second, k)
