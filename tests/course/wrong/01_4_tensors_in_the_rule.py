"""The rule computes with Tensors."""

NAMES = "returns Tensors"


def matmul(a, b):
    return Tensor(a.data @ b.data, (a, b), lambda grad: (grad @ b.T, a.T @ grad))
