"""Axes of length 1 are forgotten."""

NAMES = "an axis of length 1 was repeated"


def unbroadcast(grad, shape):
    while grad.ndim > len(shape):
        grad = grad.sum(axis=0)
    return grad
