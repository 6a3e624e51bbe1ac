"""An array is no Tensor."""

NAMES = "expected a Tensor"


def matmul(a, b):
    return a.data @ b.data
