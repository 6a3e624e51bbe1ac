"""Each product is rounded on its own."""

NAMES = "halved before they are added"


def dual_matmul(a, first, second, k):
    return xnor_matmul(a, first, k) // 2 + xnor_matmul(a, second, k) // 2
