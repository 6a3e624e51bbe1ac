"""A rule without clipping."""

NAMES = "beyond 1 receive"


def three_levels(first, second):
    mean = (sign_ste(first).data + sign_ste(second).data) / 2
    return Tensor(mean, (first, second), lambda grad: (grad / 2, grad / 2))
