"""Chapter 00: signs, bits, and their product by XOR and popcount.

Write the missing bodies, then check them: tinybnn course check 00
Each one is checked separately, with correct versions of the others.
"""

import numpy as np


def sign(x):
    """00.1: the sign of each number.

    Parameters
    ----------
    x : array of floats

    Returns
    -------
    float32 array of the same shape: +1 where x >= 0, -1 elsewhere (so -1 for NaN)
    """
    raise NotImplementedError


def to_integer(signs):
    """00.2: a row of signs as one integer.

    Parameters
    ----------
    signs : array (K,) of +1 and -1
        K may be larger than 64.

    Returns
    -------
    int, Python's own
        Bit i is 1 where element i is +1 and 0 where it is -1, so element 0 is worth 1 and element
        i is worth 2**i; the bits from K upwards are 0.
    """
    raise NotImplementedError


def popcount(word):
    """00.3: how many bits of an integer are 1.

    Parameters
    ----------
    word : int
        0 or more, of any length.

    Returns
    -------
    int
        Counted by operations on the integer, such as & - >>, neither by ``int.bit_count`` nor by
        counting the characters of a binary string.
    """
    raise NotImplementedError


def dot(a, b, k):
    """00.4: the dot product of two rows of signs, given as integers.

    Parameters
    ----------
    a, b : int
        The two rows as `to_integer` returns them.
    k : int
        How many signs each row has.

    Returns
    -------
    int
        The sum of the k products of signs; `popcount` helps.
    """
    raise NotImplementedError
