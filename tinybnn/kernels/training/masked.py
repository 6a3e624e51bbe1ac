"""Products of floats with signs by masked additions, for gradients most of which are zero.

Behind a 2 x 2 max-pool three of four gradients are zero. Since

    sum of ±g = 2 * (sum of the g whose sign is +) - (sum of all g),

it is enough to add g in those columns whose bit is 1. AVX-512 takes 16 bits of a packed row as they
are for the mask of an addition of 16 floats. A list of the gradients that are not zero is made
first, and only these are visited. Nothing has to be turned and no tables are made, as `lookup`
does, but an addition serves one gradient instead of four.
"""

from __future__ import annotations

import numpy as np

from tinybnn.kernels.machine.selection import add_where, compress, count_ones, nonzero
from tinybnn.kernels.machine.simd import (
    FLOATS,
    inlined,
    load,
    load_splat,
    load_strided,
    store,
    total,
    zero_floats,
)


def product_reference(grad, signs):
    """``grad @ signs`` by masked additions, in plain NumPy.

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
def list_nonzero(grad, at, count, step, starts, first, values, places, n):
    """Append to a list those of ``count`` gradients, ``step`` apart, that are not zero.

    With each goes a number from ``starts``, whose ``first`` belongs to the first gradient. The list
    needs room for a whole vector behind its last entry.

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
        Where its end is.

    Returns
    -------
    The end of the list, and the sum of the gradients.
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
def add_listed(values, places, first, end, words, offset, more, s0, s1, s2, s3, s4, s5, s6, s7):
    """Add the values of a list where the bits are 1: of two words, or twice of one.

    Entry n of the list adds values[n] to the columns of a row of bits, of which words[places[n] +
    offset] has the first 64, for s0 to s3, and the word ``more`` further on the others, for s4 to
    s7; ``more`` is 1, or 0 if there is no such word.
    """
    for n in range(first, end):
        value, at = load_splat(values, n), places[n] + offset
        word = words[at]
        s0 = add_where(s0, value, word)
        s1 = add_where(s1, value, word >> np.uint64(16))
        s2 = add_where(s2, value, word >> np.uint64(32))
        s3 = add_where(s3, value, word >> np.uint64(48))
        word = words[at + more]
        s4 = add_where(s4, value, word)
        s5 = add_where(s5, value, word >> np.uint64(16))
        s6 = add_where(s6, value, word >> np.uint64(32))
        s7 = add_where(s7, value, word >> np.uint64(48))
    return s0, s1, s2, s3, s4, s5, s6, s7
