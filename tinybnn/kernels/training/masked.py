"""Products of floats and signs by masked additions, for mostly zero gradients.

Behind a 2 x 2 max-pool three of four gradients are zero. Since

    sum of ±g = 2 * (sum of the g whose sign is +) - (sum of all g),

it is enough to add g in those columns whose bit is 1. AVX-512 uses 16 bits of a packed row directly
as the mask of an addition of 16 floats. The nonzero gradients are listed first, and only these are
visited. Unlike `lookup`, this transposes nothing and builds no tables, but an addition serves one
gradient instead of four. CPUs without AVX-512 would need two more instructions to turn bits into a
mask; they use `lookup`, which also takes one addition for four gradients.

For speed alone: `product_reference` is the plain NumPy version, and `sign_gradients` shows what it
gains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.kernels.machine.selection import add_where, compress, count_ones, nonzero
from tinybnn.kernels.machine.simd import (
    FLOATS,
    inlined,
    load,
    load_strided,
    splat_like,
    store,
    total,
    zero_floats,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tinybnn.typing import Array, FloatArray, Words


def product_reference(grad: FloatArray, signs: Array) -> NDArray[np.float32]:
    """Compute ``grad @ signs`` by masked additions in plain NumPy.

    Parameters
    ----------
    grad : (M, K) float32
    signs : (K, C)
        +1 or -1.

    Returns
    -------
    (M, C) float32
    """
    out = np.zeros((len(grad), signs.shape[1]), np.float32)
    for i, k in zip(*np.nonzero(grad), strict=True):
        out[i, signs[k] > 0] += grad[i, k]
    return 2 * out - grad.sum(1, keepdims=True)


@inlined
def list_nonzero(
    grad: NDArray[np.float32],
    at: int,
    count: int,
    step: int,
    starts: NDArray[np.int32],
    first: int,
    values: NDArray[np.float32],
    places: NDArray[np.int32],
    n: int,
) -> tuple[int, np.float32]:
    """Append the nonzero ones of ``count`` gradients, ``step`` apart, to a list.

    Each is stored with its number from ``starts``, in which ``first`` belongs to the first
    gradient. The list needs room for a whole vector behind its last entry.

    Parameters
    ----------
    grad : (...,) float32
    at, count, step : int
        The gradients are grad[at], grad[at + step], ...
    starts : (...,) int32
    first : int
    values, places : (...,) float32, (...,) int32
        The list: gradients, and the number of each.
    n : int
        End of the list.

    Returns
    -------
    n : int
        New end of the list.
    sum_of_all : float32
        Sum of the gradients.
    """
    sums, whole = zero_floats(), count - count % FLOATS
    for i in range(0, whole, FLOATS):
        at_i = at + i * step
        vector = load(grad, at_i) if step == 1 else load_strided(grad, at_i, step)
        bits = nonzero(vector)
        store(values, n, compress(vector, bits))
        store(places, n, compress(load(starts, first + i), bits))
        sums += vector
        n += count_ones(bits)
    sum_of_all = total(sums)
    for i in range(whole, count):
        value = grad[at + i * step]
        values[n], places[n] = value, starts[first + i]
        sum_of_all += value
        n += value != 0  # a zero is overwritten by the next one
    return n, sum_of_all


@inlined
def add_listed(
    values: NDArray[np.float32],
    places: NDArray[np.int32],
    first: int,
    end: int,
    words: Words,
    offset: int,
    more: int,
    sums: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Add the values of a list in the columns whose bits are 1, for two words of columns.

    Entry n of the list, for first <= n < end, adds values[n] to the columns of a row of bits.
    words[places[n] + offset] holds the first 64 columns, and the word ``more`` further on the
    others; ``more`` is 1, or 0 if there is only one word. ``sums`` are two vectors of 64 floats.
    """
    low, high = sums
    for n in range(first, end):
        value, at = splat_like(values[n], low), places[n] + offset
        low = add_where(low, value, words[at])
        high = add_where(high, value, words[at + more])
    return low, high
