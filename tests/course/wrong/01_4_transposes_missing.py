"""No transposes."""

NAMES = "transposes are missing"


def matmul(a, b):
    return Tensor(a.data @ b.data, (a, b), lambda grad: (grad @ b.data, a.data @ grad))
