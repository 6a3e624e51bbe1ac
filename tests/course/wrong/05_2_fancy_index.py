"""All windows at once with +=, which adds only one of several values to the same pixel."""

import numpy as np

NAMES = "overwrite each other"


def fold_windows(grad, shape, size, stride=1, padding=0):
    n, c, h, w = shape
    _, rows, columns, _ = grad.shape
    grad = grad.reshape(n, rows, columns, c, size, size).transpose(0, 3, 1, 4, 2, 5)
    padded = np.zeros((n, c, h + 2 * padding, w + 2 * padding), grad.dtype)
    i = np.arange(rows)[:, None] * stride + np.arange(size)
    j = np.arange(columns)[:, None] * stride + np.arange(size)
    padded[:, :, i[:, :, None, None], j] += grad
    return padded[:, :, padding : padding + h, padding : padding + w]
