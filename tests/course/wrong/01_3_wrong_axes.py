"""The last axes are summed instead of the first."""

NAMES = "wrong axes"


def unbroadcast(grad, shape):
    while grad.ndim > len(shape):
        grad = grad.sum(axis=-1)
    return grad.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
