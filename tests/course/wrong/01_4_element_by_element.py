"""The rule of multiply."""

NAMES = "rule of a * b"


def matmul(a, b):
    return Tensor(a.data @ b.data, (a, b), lambda grad: (grad * b.data, grad * a.data))
