"""Parents exchanged."""

NAMES = "the parents are (b, a)"


def matmul(a, b):
    return Tensor(a.data @ b.data, (b, a), lambda grad: (grad @ b.data.T, a.data.T @ grad))
