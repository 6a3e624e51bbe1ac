"""Transposed."""

NAMES = "comes out transposed"


def matmul(a, b):
    return Tensor(a.data @ b.data, (a, b), lambda grad: (b.data @ grad.T, a.data.T @ grad))
