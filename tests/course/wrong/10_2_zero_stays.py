"""No gradient where the weight is 0."""

NAMES = "could never leave 0"


def three_levels(first, second):
    mean = (sign_ste(first).data + sign_ste(second).data) / 2

    def rule(grad):
        grad = grad * (mean != 0) / 2
        return grad * (abs(first.data) <= 1), grad * (abs(second.data) <= 1)

    return Tensor(mean, (first, second), rule)
