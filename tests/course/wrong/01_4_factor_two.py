"""Factor two."""

NAMES = "the gradient of a: "


def matmul(a, b):
    return Tensor(a.data @ b.data, (a, b), lambda grad: (2 * grad @ b.data.T, a.data.T @ grad))
