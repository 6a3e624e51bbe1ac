"""The product of Tensors instead of arrays."""

NAMES = "calls itself"


def matmul(a, b):
    return Tensor(a @ b, (a, b), lambda grad: (grad @ b.data.T, a.data.T @ grad))
