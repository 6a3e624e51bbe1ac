"""One product with the AND of the planes."""

NAMES = "joined by AND"


def dual_matmul(a, first, second, k):
    return xnor_matmul(a, first & second, k)
