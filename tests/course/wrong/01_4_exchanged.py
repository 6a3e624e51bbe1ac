"""The gradient of b comes first."""

NAMES = "in the wrong order"


def matmul(a, b):
    return Tensor(a.data @ b.data, (a, b), lambda grad: (a.data.T @ grad, grad @ b.data.T))
