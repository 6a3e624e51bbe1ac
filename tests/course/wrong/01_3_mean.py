"""A mean instead of a sum."""

NAMES = "a mean is returned"


def unbroadcast(grad, shape):
    while grad.ndim > len(shape):
        grad = grad.mean(axis=0)
    return grad.mean(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
