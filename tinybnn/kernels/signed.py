"""Real-valued sums that do not depend on who computes them.

Floating-point addition is not associative: a sum changes with the order of its terms, and a BLAS
library chooses the order by the shape of the matrices, the number of threads and the CPU. Where two
paths must agree bit for bit, as the eval mode of a model and its packed form do in their first and
last layers, the order has to be fixed. Here it is: ascending k.
"""

import numba
import numpy as np

from tinybnn.kernels import threads


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
    with threads.exclusive(), np.errstate(over="ignore", invalid="ignore"):
        _ordered_matmul(a, b, out)
    return out


def ordered_matmul_reference(a, b):
    """What :func:`ordered_matmul` computes, in plain NumPy."""
    total = np.zeros((a.shape[0], b.shape[1]), a.dtype)  # (M, N)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(a.shape[1]):
            total += a[:, k : k + 1] * b[k]  # (M, 1) * (N,)
    return total


# The inner loop runs over j, where b and out are contiguous and the sums are independent of each
# other, so the compiler may use vector instructions without touching the order in k. Four values of
# k a pass save three of four loads and stores of out.
@numba.njit(cache=True, nogil=True, parallel=True)
def _ordered_matmul(a, b, out):
    rows, depth = a.shape
    columns = b.shape[1]
    whole = depth - depth % 4
    for i in numba.prange(rows):
        for j in range(columns):
            out[i, j] = 0
        for k in range(0, whole, 4):
            a0, a1, a2, a3 = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
            for j in range(columns):
                total = out[i, j]
                total += a0 * b[k, j]
                total += a1 * b[k + 1, j]
                total += a2 * b[k + 2, j]
                total += a3 * b[k + 3, j]
                out[i, j] = total
        for k in range(whole, depth):
            for j in range(columns):
                out[i, j] += a[i, k] * b[k, j]
