"""Real-valued sums that do not depend on who computes them.

Floating-point addition is not associative: a sum changes with the order of its terms, and a BLAS
library chooses the order by the shape of the matrices, the number of threads and the CPU. Where two
paths must agree bit for bit, as the eval mode of a model and its packed form do in their first and
last layers, the order has to be fixed. Here it is: ascending k.
"""

import numba
import numpy as np
from numba import prange

from tinybnn.kernels import threads
from tinybnn.kernels.simd import (
    FLOATS,
    kernel,
    load,
    load_splat,
    store,
    store_first,
    zero_floats,
)

_GRAIN = 1 << 20  # multiplications (some 20 microseconds) below which a second thread costs time


def ordered_matmul(a, b):
    """Matrix product ``a @ b`` whose sums run in one fixed order.

    ``out[i, j]`` starts at 0 and adds ``a[i, k] * b[k, j]`` for k = 0, 1, 2, ... in this order;
    each product is rounded before it is added (no fused multiply-add). A row of the result is
    therefore the same, bit for bit, whatever the other rows, the number of threads and the CPU.

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
        If a dtype or a shape does not fit, or K is 0.
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
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    # inf - inf is NaN without a warning in compiled code; the same when the JIT is off.
    with np.errstate(over="ignore", invalid="ignore"):
        if a.dtype == np.float64:
            _ordered_doubles(a, b, out)
        elif out.size:
            _ordered_float32(a, b, out)
    return out


def _ordered_float32(a, b, out):
    (rows, depth), columns = a.shape, b.shape[1]
    narrow = columns < FLOATS
    flat = a.reshape(-1), b.reshape(-1), out.reshape(-1)
    whole = (
        max(b.size - FLOATS, -1) // columns + 1
    )  # rows of b from which 16 elements can be loaded
    tail = np.zeros((depth - whole) * columns + FLOATS, np.float32)  # and the others
    tail[:-FLOATS] = flat[1][whole * columns :]
    tasks = min(numba.get_num_threads(), rows, rows * depth * columns // _GRAIN)
    if tasks > 1:
        bounds = np.arange(tasks + 1) * rows // tasks
        with threads.exclusive():
            _ordered_floats_tasks(*flat, tail, bounds, depth, columns)
    elif narrow:
        _ordered_floats_narrow(*flat, tail, 0, rows, depth, columns)
    else:
        _ordered_floats(*flat, 0, rows, depth, columns)


def ordered_matmul_reference(a, b):
    """What :func:`ordered_matmul` computes, in plain NumPy."""
    total = np.zeros((a.shape[0], b.shape[1]), a.dtype)  # (M, N)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(a.shape[1]):
            total += a[:, k : k + 1] * b[k]  # (M, 1) * (N,)
    return total


# The sums of different outputs are independent of each other, so they share vectors: 16 columns a
# vector, and 4 rows times 32 columns in registers at a time, which keeps the adder busy while each
# sum waits for its last addition. Multiplication and addition stay two instructions.
@kernel(allocates=False)
def _ordered_floats(a, b, out, first, end, depth, columns):
    """Rows first to end - 1 of the float32 product; flat arrays, columns >= 16."""
    for column in range(0, columns, 2 * FLOATS):
        # The last columns move back over those that are done.
        j0 = min(column, columns - FLOATS)
        j1 = min(column + FLOATS, columns - FLOATS)
        for row in range(first, end, 4):
            # So do the last rows; with fewer than 4, one is computed several times.
            r0 = max(min(row, end - 4), first)
            r1, r2, r3 = min(r0 + 1, end - 1), min(r0 + 2, end - 1), min(r0 + 3, end - 1)
            s00, s01, s10, s11 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
            s20, s21, s30, s31 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
            for k in range(depth):
                b0, b1 = load(b, k * columns + j0), load(b, k * columns + j1)
                x = load_splat(a, r0 * depth + k)
                s00 += x * b0
                s01 += x * b1
                x = load_splat(a, r1 * depth + k)
                s10 += x * b0
                s11 += x * b1
                x = load_splat(a, r2 * depth + k)
                s20 += x * b0
                s21 += x * b1
                x = load_splat(a, r3 * depth + k)
                s30 += x * b0
                s31 += x * b1
            store(out, r0 * columns + j0, s00)
            store(out, r0 * columns + j1, s01)
            store(out, r1 * columns + j0, s10)
            store(out, r1 * columns + j1, s11)
            store(out, r2 * columns + j0, s20)
            store(out, r2 * columns + j1, s21)
            store(out, r3 * columns + j0, s30)
            store(out, r3 * columns + j1, s31)


@kernel(allocates=False)
def _ordered_floats_narrow(a, b, out, tail, first, end, depth, columns):
    """The same for fewer than 16 columns.

    A vector then holds a row of `b` and the beginning of the next ones, which is computed and not
    stored. `tail` is a copy of the last rows of `b`, with 16 elements more.
    """
    whole = depth - (len(tail) - FLOATS) // columns
    for row in range(first, end, 4):
        r0 = max(min(row, end - 4), first)
        r1, r2, r3 = min(r0 + 1, end - 1), min(r0 + 2, end - 1), min(r0 + 3, end - 1)
        s0, s1, s2, s3 = zero_floats(), zero_floats(), zero_floats(), zero_floats()
        for k in range(depth):
            b0 = load(b, k * columns) if k < whole else load(tail, (k - whole) * columns)
            s0 += load_splat(a, r0 * depth + k) * b0
            s1 += load_splat(a, r1 * depth + k) * b0
            s2 += load_splat(a, r2 * depth + k) * b0
            s3 += load_splat(a, r3 * depth + k) * b0
        store_first(out, r0 * columns, s0, columns)
        store_first(out, r1 * columns, s1, columns)
        store_first(out, r2 * columns, s2, columns)
        store_first(out, r3 * columns, s3, columns)


@kernel(parallel=True)
def _ordered_floats_tasks(a, b, out, tail, bounds, depth, columns):
    for task in prange(len(bounds) - 1):
        if columns < FLOATS:
            _ordered_floats_narrow(a, b, out, tail, bounds[task], bounds[task + 1], depth, columns)
        else:
            _ordered_floats(a, b, out, bounds[task], bounds[task + 1], depth, columns)


# float64 is for gradient checks, where speed does not matter.
@kernel
def _ordered_doubles(a, b, out):
    rows, depth = a.shape
    for i in range(rows):
        out[i] = 0
        for k in range(depth):
            for j in range(b.shape[1]):
                out[i, j] += a[i, k] * b[k, j]
