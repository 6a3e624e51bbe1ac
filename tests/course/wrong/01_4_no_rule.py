"""The result does not know its parents."""

NAMES = "does not remember"


def matmul(a, b):
    return Tensor(a.data @ b.data)
