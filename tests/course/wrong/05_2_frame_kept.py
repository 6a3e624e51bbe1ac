"""The frame is not cut off."""

import numpy as np

NAMES = "frame is still there"


def fold_windows(grad, shape, size, stride=1, padding=0):
    n, c, h, w = shape
    _, rows, columns, _ = grad.shape
    grad = grad.reshape(n, rows, columns, c, size, size)
    padded = np.zeros((n, c, h + 2 * padding, w + 2 * padding), grad.dtype)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            padded[:, :, top : top + size, left : left + size] += grad[:, i, j]
    return padded[:, :, :, :]
