"""Matrix product of floats with all sums in one fixed order.

Not for speed: BLAS is faster, but chooses the order of the sums by the shapes, the number of
threads and the CPU (see `ordered`). `ordered_matmul_reference` is the plain NumPy version, which
takes one pass over the output per term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.simd import FLOATS, inlined, kernel, load, zero_floats
from tinybnn.kernels.machine.tiles import add_products, four, moved, store_tile

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import FloatArray

_SPEED = 1e11  # multiplications per second on a fast core


def ordered_matmul(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Compute the matrix product ``a @ b`` with all sums in one fixed order.

    ``out[i, j]`` starts at 0 and adds ``a[i, k] * b[k, j]`` for k = 0, 1, 2, ... in this order;
    each product is rounded before it is added (no fused multiply-add). So a row of the result is
    the same, bit for bit, whatever the other rows, the number of threads and the CPU.

    Parameters
    ----------
    a : (M, K) float32 or float64
    b : (K, N) of the same dtype

    Returns
    -------
    (M, N) of the same dtype

    Raises
    ------
    ValueError
        If a dtype or a shape does not match, or K is 0.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype not in (np.float32, np.float64):
        raise ValueError(f"ordered_matmul: a must be float32 or float64, got {a.dtype}")
    if b.dtype != a.dtype:
        raise ValueError(f"ordered_matmul: b must be {a.dtype} as a is, got {b.dtype}")
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(
            f"ordered_matmul: a and b must have 2 axes, got shapes {a.shape} and {b.shape}"
        )
    if b.shape[0] != a.shape[1]:
        raise ValueError(f"ordered_matmul: b has {b.shape[0]} rows, a has {a.shape[1]} columns")
    if a.shape[1] == 0:
        raise ValueError("ordered_matmul: the summed axis must hold elements, K is 0")
    out = np.empty((a.shape[0], b.shape[1]), a.dtype)
    a, b = for_kernel(a), for_kernel(b)
    if a.dtype == np.float32:
        if out.size:
            bind_ordered_matmul(a, b, out)()
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            _ordered_doubles(a, b, out)
    return out


def bind_ordered_matmul(
    a: NDArray[np.float32], b: NDArray[np.float32], out: NDArray[np.float32]
) -> Callable[[], None]:
    """Prepare `ordered_matmul` for repeated calls on the same float32 arrays.

    Parameters
    ----------
    a : (M, K) float32
    b : (K, N) float32
    out : (M, N) float32
        Array for the result. All are C-contiguous and not empty.

    Returns
    -------
    callable
        Takes no arguments. It uses as many threads as are set now.
    """
    (rows, depth), columns = a.shape, b.shape[1]
    flat = a.reshape(-1), b.reshape(-1), out.reshape(-1)
    # Rows of b from which 16 elements can be loaded, and a padded copy of the others.
    whole = max(b.size - FLOATS, -1) // columns + 1
    tail = np.zeros((depth - whole) * columns + FLOATS, np.float32)
    tail[:-FLOATS] = flat[1][whole * columns :]
    tasks = min(threads.tasks_for(rows * depth * columns / _SPEED), max(rows, 1))
    worker = _ordered_floats_narrow if columns < FLOATS else _ordered_floats
    work = parallel.bind(worker, parallel.shares(rows, tasks), *flat, tail, depth, columns)
    # In compiled code inf - inf is NaN without a warning; do the same when the JIT is off.
    return np.errstate(all="ignore")(work) if numba.config.DISABLE_JIT else work


def ordered_matmul_reference(a: FloatArray, b: FloatArray) -> FloatArray:
    """Compute :func:`ordered_matmul` in plain NumPy; shapes as there."""
    total = np.zeros((a.shape[0], b.shape[1]), a.dtype)  # (M, N)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(a.shape[1]):
            total += a[:, k : k + 1] * b[k]  # (M, 1) * (N,)
    return total


# The sums of different outputs are independent, so vectors hold 16 columns each, and 4 rows times
# 32 columns are in registers at a time, which keeps the adder busy while each sum waits for its
# last addition. Multiplication and addition stay two instructions.
@kernel(allocates=False)
def _ordered_floats(first, end, task, a, b, out, tail, depth, columns):
    """Compute rows first to end - 1 of the float32 product; flat arrays, columns >= 16."""
    for column in range(0, columns, 2 * FLOATS):
        # The last columns move back over finished ones.
        j0 = min(column, columns - FLOATS)
        j1 = min(column + FLOATS, columns - FLOATS)
        for row in range(first, end, 4):
            # So do the last rows; with fewer than 4, one is repeated.
            places, targets = _four_rows(row, first, end, depth, columns)
            left, right = four(zero_floats()), four(zero_floats())
            for k in range(depth):
                left = add_products(left, places, a, k, load(b, k * columns + j0))
                right = add_products(right, places, a, k, load(b, k * columns + j1))
            store_tile(left, moved(targets, j0), out, FLOATS)
            store_tile(right, moved(targets, j1), out, FLOATS)


@kernel(allocates=False)
def _ordered_floats_narrow(first, end, task, a, b, out, tail, depth, columns):
    """Compute rows first to end - 1 for fewer than 16 columns.

    A vector then holds a row of ``b`` and the beginning of the next ones, which is computed and not
    stored. ``tail`` is a copy of the last rows of ``b``, with 16 additional elements.
    """
    whole = depth - (len(tail) - FLOATS) // columns
    for row in range(first, end, 4):
        places, targets = _four_rows(row, first, end, depth, columns)
        tile = four(zero_floats())
        for k in range(depth):
            b0 = load(b, k * columns) if k < whole else load(tail, (k - whole) * columns)
            tile = add_products(tile, places, a, k, b0)
        store_tile(tile, targets, out, columns)


@inlined
def _four_rows(row, first, end, depth, columns):
    """Return the starts of four rows of ``a`` and of the result, all before ``end``."""
    r0 = max(min(row, end - 4), first)
    r1, r2, r3 = min(r0 + 1, end - 1), min(r0 + 2, end - 1), min(r0 + 3, end - 1)
    places = r0 * depth, r1 * depth, r2 * depth, r3 * depth
    return places, (r0 * columns, r1 * columns, r2 * columns, r3 * columns)


# float64 is for gradient checks, where speed does not matter.
@kernel
def _ordered_doubles(a, b, out):
    rows, depth = a.shape
    for i in range(rows):
        out[i] = 0
        for k in range(depth):
            for j in range(b.shape[1]):
                out[i, j] += a[i, k] * b[k, j]
