"""b is not transposed in the gradient of a."""

NAMES = "grad @ b here"


def matmul(a, b):
    return Tensor(a.data @ b.data, (a, b), lambda grad: (grad @ b.data, a.data.T @ grad))
