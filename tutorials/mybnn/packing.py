"""Chapter 04: signs in words, and the product of words by XOR and popcount.

Write the missing bodies, then check them: tinybnn course check 04
Each one is checked separately, with correct versions of the others.
"""

import numba
import numpy as np

# Masks and shifts for popcount_words, uint64 as the words are.
PAIRS = np.uint64(0x5555555555555555)  # ...0101 0101
FOURS = np.uint64(0x3333333333333333)  # ...0011 0011
BYTES = np.uint64(0x0F0F0F0F0F0F0F0F)  # ...0000 1111
EACH = np.uint64(0x0101010101010101)  # 1 in each byte
ONE, TWO, FOUR, LAST = (np.uint64(n) for n in (1, 2, 4, 56))


def pack(signs):
    """04.1: rows of signs as rows of words.

    Parameters
    ----------
    signs : (..., K) array of +1 and -1, any dtype
        Rows of K signs along the last axis, preceded by any number of axes.

    Returns
    -------
    (..., ceil(K / 64)) uint64: bit i of word j, counted from the lowest bit, is 1 where
    signs[..., 64 * j + i] is +1. The bits of the last word after the K-th sign are 0.
    """
    raise NotImplementedError


def popcount_words(words):
    """04.2: how many bits of each word are 1, without np.bitwise_count.

    Parameters
    ----------
    words : uint64 array of any shape

    Returns
    -------
    int64 array of the same shape, 0 to 64
    """
    raise NotImplementedError


def xnor_matmul(a, b, k):
    """04.3: the dot products of all rows of a with all rows of b, in NumPy.

    Parameters
    ----------
    a : (N, W) uint64, packed rows of k signs
    b : (M, W) uint64, packed rows of k signs
    k : int

    Returns
    -------
    (N, M) int32
    """
    raise NotImplementedError


def xnor_matmul_fast(a, b, k):
    """04.4: xnor_matmul in a compiled loop, with no array between the words and the result.

    Parameters
    ----------
    a : (N, W) uint64, packed rows of k signs
    b : (M, W) uint64, packed rows of k signs
    k : int

    Returns
    -------
    (N, M) int32
    """
    raise NotImplementedError
