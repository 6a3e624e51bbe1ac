"""The gradient as it came."""

NAMES = "as it came"


def unbroadcast(grad, shape):
    return grad
