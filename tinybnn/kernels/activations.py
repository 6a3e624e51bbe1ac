"""Activations that are a line on each side of zero, and their gradients, in one pass over memory.

NumPy's ``where(x > 0, x, slope * x)`` makes three passes and two arrays that nobody keeps.

Elementwise results do not depend on the number of threads. The gradient of slopes is a sum over all
rows: blocks of rows, which do not depend on it either, are summed in float64, and then the blocks.
"""

from __future__ import annotations

import numpy as np

from tinybnn.kernels import parallel, threads
from tinybnn.kernels.memory import empty_like
from tinybnn.kernels.simd import kernel

_GRAIN = 1 << 17  # floats below which a second thread costs time
_BLOCK_FLOATS, _MOST_BLOCKS = 1 << 14, 64  # of rows that are summed together
_VALUE, _GRADIENT = range(2)
_NO_SUMS = np.empty((0, 0))


def leaky_relu(x, slope):
    """x where x > 0, else slope * x.

    Parameters
    ----------
    x : (n,) float32, C-contiguous
    slope : float
        Rounded to float32.

    Returns
    -------
    (n,) float32
    """
    return _leaky(x, x, slope)


def leaky_relu_reference(x, slope):
    """What `leaky_relu` computes, in plain NumPy."""
    return np.where(x > 0, x, np.float32(slope) * x)


def leaky_relu_gradient(grad, x, slope):
    """grad where x > 0, else slope * grad.

    Parameters
    ----------
    grad, x : (n,) float32, C-contiguous
    slope : float

    Returns
    -------
    (n,) float32
    """
    return _leaky(x, grad, slope)


def leaky_relu_gradient_reference(grad, x, slope):
    """What `leaky_relu_gradient` computes, in plain NumPy."""
    return np.where(x > 0, grad, np.float32(slope) * grad)


def prelu(x, slopes):
    """x where x > 0, else slopes * x, with a slope for each channel.

    Parameters
    ----------
    x : (n, C) float32, C-contiguous
    slopes : (C,) float32

    Returns
    -------
    (n, C) float32
    """
    out = empty_like(x)
    _rows(_VALUE, x, x, slopes, out, _NO_SUMS)
    return out


def prelu_reference(x, slopes):
    """What `prelu` computes, in plain NumPy."""
    return np.where(x > 0, x, slopes * x)


def prelu_gradient(grad, x, slopes):
    """Gradients of `prelu` in its input and in its slopes.

    Parameters
    ----------
    grad, x : (n, C) float32, C-contiguous
    slopes : (C,) float32

    Returns
    -------
    (n, C) float32
        grad where x > 0, else slopes * grad.
    (C,) float32
        Sums of grad * x over the rows where x is not above 0, rounded once.
    """
    out = empty_like(x)
    blocks = max(1, min(_MOST_BLOCKS, x.size // _BLOCK_FLOATS))
    sums = np.zeros((blocks, x.shape[1]))
    _rows(_GRADIENT, x, grad, slopes, out, sums)
    return out, sums.sum(0).astype(np.float32)


def prelu_gradient_reference(grad, x, slopes):
    """What `prelu_gradient` computes, in plain NumPy; the order of the sums aside."""
    products = np.where(x > 0, np.float32(0), grad * x)
    return np.where(x > 0, grad, slopes * grad), products.sum(0, np.float64).astype(np.float32)


def _leaky(x, values, slope):
    out = empty_like(x)
    tasks = threads.count() if x.size >= _GRAIN else 1
    arguments = x, values, np.float32(slope), out
    if tasks == 1:
        _numbers(0, len(x), 0, *arguments)
    else:
        parallel.share_out(_numbers, parallel.shares(len(x), tasks, 16), *arguments)
    return out


def _rows(step, x, values, slopes, out, sums):
    blocks = max(len(sums), 1) if step == _GRADIENT else min(len(x), threads.count())
    tasks = min(threads.count(), blocks) if x.size >= _GRAIN else 1
    arguments = np.arange(blocks + 1) * len(x) // blocks, step, x, values, slopes, out, sums
    if tasks == 1:
        _blocks(0, blocks, 0, *arguments)
    else:
        parallel.share_out(_blocks, parallel.shares(blocks, tasks), *arguments)


# ---------------------------------------------------------------------------------------- kernels


@kernel(allocates=False)
def _numbers(first, end, task, x, values, slope, out):
    """The numbers first to end - 1."""
    x, values, out = x[first:end], values[first:end], out[first:end]
    for i in range(len(x)):
        out[i] = values[i] if x[i] > 0 else slope * values[i]


@kernel(allocates=False)
def _blocks(first, end, task, bounds, step, x, values, slopes, out, sums):
    """The rows bounds[b] to bounds[b + 1] - 1 of blocks b from first to end - 1."""
    for block in range(first, end):
        for row in range(bounds[block], bounds[block + 1]):
            seen, given, target = x[row], values[row], out[row]
            for c in range(len(slopes)):
                target[c] = given[c] if seen[c] > 0 else slopes[c] * given[c]
            if step == _GRADIENT:
                total = sums[block]
                for c in range(len(slopes)):
                    product = np.float32(0) if seen[c] > 0 else given[c] * seen[c]
                    total[c] += np.float64(product)
