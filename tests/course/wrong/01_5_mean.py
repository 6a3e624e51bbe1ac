"""The mean error."""

import numpy as np

NAMES = "mean of the errors"


def gradcheck(function, *arrays):
    h, errors = 1e-5, []
    tensors = [Tensor(array.copy()) for array in arrays]
    backward(function(*tensors).sum())
    for tensor in tensors:
        x = tensor.data
        for i in np.ndindex(x.shape):
            before = x[i]
            x[i] = before + h
            above = function(*tensors).data.sum()
            x[i] = before - h
            below = function(*tensors).data.sum()
            x[i] = before
            slope = (above - below) / (2 * h)
            errors.append(abs(tensor.grad[i] - slope))
    return sum(errors) / len(errors)
