"""Rule returns nothing."""

NAMES = "the rule returns None"


def matmul(a, b):
    def rule(grad):
        (grad @ b.data.T, a.data.T @ grad)

    return Tensor(a.data @ b.data, (a, b), rule)
