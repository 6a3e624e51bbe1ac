"""Activations that are a line, or a value, on each side of a threshold: one pass over memory.

NumPy's ``where(x > 0, x, slope * x)`` makes three passes and two temporary arrays, and each learned
constant adds one or two passes forward and three backward. Nearly all activations of binary
networks have one of two forms, with constants for each channel:

- *two lines*: PReLU, RPReLU, Maxout. `two_lines`
- *two values*: RSign, AdaBin's adapted set. `two_values`

Elementwise results do not depend on the number of threads. The gradient of a constant is a sum over
all rows: 32 rows are summed in float32, these sums in float64 for each of up to 16 blocks of rows,
whose number does not depend on the threads either, and then the blocks.

For speed alone: with the plain ``*_reference`` functions a step of BD-Net-A (width 0.5) takes four
times as long. `tinybnn bench train --profile` shows their share of a step.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import aligned, empty, empty_like
from tinybnn.kernels.machine.simd import inlined, kernel
from tinybnn.kernels.training.straight_through import leaky_gradient

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPEED = 6e9  # floats per second on a fast core
_BLOCK_FLOATS, _MOST_BLOCKS = 1 << 15, 16  # blocks of rows that are summed together
_RUN = 32  # rows summed in float32
_WIDE = 512  # numbers in a row; shorter rows are joined to about this length


def leaky_relu(x: NDArray[np.float32], slope: float) -> NDArray[np.float32]:
    """Compute x where x > 0, else slope * x.

    Parameters
    ----------
    x : (n,) float32, C-contiguous
    slope : float
        Rounded to float32.

    Returns
    -------
    (n,) float32
    """
    return leaky_gradient(x, x, slope)


def leaky_relu_reference(x: NDArray[np.float32], slope: float) -> NDArray[np.float32]:
    """Compute `leaky_relu` in plain NumPy."""
    return np.where(x > 0, x, np.float32(slope) * x)


def leaky_relu_gradient(
    grad: NDArray[np.float32], x: NDArray[np.float32], slope: float
) -> NDArray[np.float32]:
    """Compute grad where x > 0, else slope * grad.

    Parameters
    ----------
    grad, x : (n,) float32, C-contiguous
    slope : float

    Returns
    -------
    (n,) float32
    """
    return leaky_gradient(grad, x, slope)


def leaky_relu_gradient_reference(
    grad: NDArray[np.float32], x: NDArray[np.float32], slope: float
) -> NDArray[np.float32]:
    """Compute `leaky_relu_gradient` in plain NumPy."""
    return np.where(x > 0, grad, np.float32(slope) * grad)


def two_lines(x: NDArray[np.float32], constants: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute (positive * u if u > 0 else negative * u) + offset, with u = x - shift.

    Parameters
    ----------
    x : (n, C) float32, C-contiguous
    constants : (4, C) float32
        shift, positive, negative, offset. Neutral values are 0, 1, 1 and -0.0 (x + 0.0 would turn
        -0.0 into 0.0).

    Returns
    -------
    (n, C) float32
    """
    return _values_by(_lines, x, constants)


def two_lines_reference(
    x: NDArray[np.float32], constants: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compute `two_lines` in plain NumPy; shapes as there."""
    shift, positive, negative, offset = constants
    u = x - shift
    return np.where(u > 0, positive * u, negative * u) + offset


def two_lines_gradient(
    grad: NDArray[np.float32], x: NDArray[np.float32], constants: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute the gradients of `two_lines` in its input and in its constants.

    Parameters
    ----------
    grad, x : (n, C) float32, C-contiguous
    constants : (4, C) float32

    Returns
    -------
    (n, C) float32
        grad times the slope of its side; at u = 0 that is the negative one.
    (4, C) float32
        Sums over the rows: minus the first result; grad u where u > 0; grad u elsewhere; grad.
    """
    return _gradient_by(_lines_gradient, grad, x, constants)


def two_lines_gradient_reference(
    grad: NDArray[np.float32], x: NDArray[np.float32], constants: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute `two_lines_gradient` in plain NumPy, except for the order of the sums."""
    shift, positive, negative, _ = constants
    u = x - shift
    out, products = np.where(u > 0, positive * grad, negative * grad), grad * u
    zero = x.dtype.type(0)
    parts = -out, np.where(u > 0, products, zero), np.where(u > 0, zero, products), grad
    return out, np.stack([part.sum(0, np.float64) for part in parts]).astype(x.dtype)


def two_values(x: NDArray[np.float32], constants: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute high where (x - threshold) / width >= 0, else low.

    Parameters
    ----------
    x : (n, C) float32, C-contiguous
    constants : (4, C) float32
        threshold, width, low, high. The width is positive.

    Returns
    -------
    (n, C) float32
    """
    return _values_by(_values, x, constants)


def two_values_reference(
    x: NDArray[np.float32], constants: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compute `two_values` in plain NumPy; shapes as there."""
    threshold, width, low, high = constants
    return np.where((x - threshold) / width >= 0, high, low)


def two_values_gradient(
    grad: NDArray[np.float32], x: NDArray[np.float32], constants: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute the gradients of `two_values` with the slope of Bi-Real Net's tent.

    With u = (x - threshold) / width and tent(u) = 2 - 2 |u| where |u| <= 1, else 0 (Liu et al.
    2018, eq. 8), d = grad tent(u) is the gradient through the sign.

    Parameters
    ----------
    grad, x : (n, C) float32, C-contiguous
    constants : (4, C) float32

    Returns
    -------
    (n, C) float32
        d.
    (4, C) float32
        Sums over the rows: d; d u; grad where u >= 0; grad elsewhere.
    """
    return _gradient_by(_values_gradient, grad, x, constants)


def two_values_gradient_reference(
    grad: NDArray[np.float32], x: NDArray[np.float32], constants: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute `two_values_gradient` in plain NumPy, except for the order of the sums."""
    threshold, width, *_ = constants
    u, zero, two = (x - threshold) / width, x.dtype.type(0), x.dtype.type(2)
    d = grad * np.where(np.abs(u) <= 1, two - two * np.abs(u), zero)
    parts = d, d * np.where(np.abs(u) <= 1, u, zero), np.where(u >= 0, grad, zero)
    parts = *parts, np.where(u >= 0, zero, grad)
    return d, np.stack([part.sum(0, np.float64) for part in parts]).astype(x.dtype)


@functools.lru_cache(maxsize=256)
def _joined(rows, channels):
    """Return how many rows of channels form one row of the kernel, long enough for vectors."""
    return next(n for n in range(max(1, _WIDE // channels), 0, -1) if rows % n == 0)


def _values_by(worker, x, constants):
    x = for_kernel(x)
    joined = _joined(*x.shape)
    out, rows = empty_like(x), len(x) // joined
    tasks = max(1, min(threads.tasks_for(x.size / _SPEED), rows))
    wide = x.reshape(rows, -1), aligned(np.tile(constants, joined)), out.reshape(rows, -1)
    parallel.share_out(worker, parallel.shares(rows, tasks), *wide)
    return out


def _gradient_by(worker, grad, x, constants):
    """Return the gradient in x, and the sums for the constants."""
    grad, x = for_kernel(grad), for_kernel(x)
    joined = _joined(*x.shape)
    out, rows = empty_like(x), len(x) // joined
    blocks = max(1, min(_MOST_BLOCKS, x.size // _BLOCK_FLOATS))
    tasks = min(threads.tasks_for(x.size / _SPEED), blocks)
    constants = aligned(np.tile(constants, joined))
    run, total = empty((blocks, *constants.shape), np.float32), np.zeros((blocks, *constants.shape))
    wide = (a.reshape(rows, -1) for a in (x, grad, out))
    bounds = np.arange(blocks + 1) * rows // blocks
    shares = parallel.shares(blocks, tasks)
    parallel.share_out(worker, shares, bounds, *wide, constants, (run, total))
    sums = total.sum(0).reshape(len(constants), joined, -1).sum(1)
    return out, sums.astype(np.float32)


# ---------------------------------------------------------------------------------------- kernels


# Both sides of a choice are loaded before it: loading one side only is a branch, which keeps the
# loop from being vectorised.


@kernel(allocates=False)
def _lines(first, end, task, x, constants, out):
    """Compute `two_lines` for rows first to end - 1."""
    shift, positive, negative, offset = constants[0], constants[1], constants[2], constants[3]
    for row in range(first, end):
        x_row, out_row = x[row], out[row]
        for c in range(len(shift)):
            u, above, below = x_row[c] - shift[c], positive[c], negative[c]
            out_row[c] = (above if u > 0 else below) * u + offset[c]


@kernel(allocates=False)
def _lines_gradient(first, end, task, bounds, x, grad, out, constants, sums):
    """Compute `two_lines_gradient` for rows bounds[b] to bounds[b + 1] - 1 of blocks b.

    Blocks are first to end - 1. ``sums`` are memory for the sums of some rows of a block, and for
    the sums of each block.
    """
    shift, positive, negative = constants[0], constants[1], constants[2]
    zero = np.float32(0)
    for block in range(first, end):
        run, after = sums[0][block], bounds[block + 1]
        shift_sums, positive_sums, negative_sums, offset_sums = run[0], run[1], run[2], run[3]
        for start in range(bounds[block], after, _RUN):
            _clear(run)
            for row in range(start, min(start + _RUN, after)):
                x_row, grad_row, out_row = x[row], grad[row], out[row]
                for c in range(len(shift)):
                    u, above, below = x_row[c] - shift[c], positive[c], negative[c]
                    value, product = (above if u > 0 else below) * grad_row[c], grad_row[c] * u
                    out_row[c] = value
                    shift_sums[c] -= value
                    positive_sums[c] += product if u > 0 else zero
                    negative_sums[c] += zero if u > 0 else product
                    offset_sums[c] += grad_row[c]
            _add_up(run, sums[1][block])


@kernel(allocates=False)
def _values(first, end, task, x, constants, out):
    """Compute `two_values` for rows first to end - 1."""
    threshold, width, low, high = constants[0], constants[1], constants[2], constants[3]
    for row in range(first, end):
        x_row, out_row = x[row], out[row]
        for c in range(len(threshold)):
            u, above, below = (x_row[c] - threshold[c]) / width[c], high[c], low[c]
            out_row[c] = above if u >= 0 else below


@kernel(allocates=False)
def _values_gradient(first, end, task, bounds, x, grad, out, constants, sums):
    """Compute `two_values_gradient`; parameters as in `_lines_gradient`."""
    threshold, width = constants[0], constants[1]
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    for block in range(first, end):
        run, after = sums[0][block], bounds[block + 1]
        slope_sums, width_sums, high_sums, low_sums = run[0], run[1], run[2], run[3]
        for start in range(bounds[block], after, _RUN):
            _clear(run)
            for row in range(start, min(start + _RUN, after)):
                x_row, grad_row, out_row = x[row], grad[row], out[row]
                for c in range(len(threshold)):
                    u = (x_row[c] - threshold[c]) / width[c]
                    size = abs(u)
                    value = grad_row[c] * (two - two * size if size <= one else zero)
                    out_row[c] = value
                    slope_sums[c] += value
                    width_sums[c] += value * (u if size <= one else zero)
                    high_sums[c] += grad_row[c] if u >= 0 else zero
                    low_sums[c] += zero if u >= 0 else grad_row[c]
            _add_up(run, sums[1][block])


@inlined
def _clear(sums):
    for i in range(sums.shape[0]):
        row = sums[i]
        for c in range(len(row)):
            row[c] = np.float32(0)


@inlined
def _add_up(sums, total):
    for i in range(sums.shape[0]):
        row, to = sums[i], total[i]
        for c in range(len(row)):
            to[c] += np.float64(row[c])
