"""Chapter 13: tests over seeds, ratios of times, counted operations and their limits.

Write the missing bodies, then check them: tinybnn course check 13
Each one is checked separately, with correct versions of the others.
"""

import itertools
import statistics
import time

import numpy as np


def paired_t(first, second):
    """13.1: how many standard errors the mean difference of two networks is away from 0.

    Parameters
    ----------
    first, second : float64 arrays (S,), S >= 2
        A figure for each seed; element i of both belongs to seed i.

    Returns
    -------
    float
        The mean of the differences first - second, divided by the standard error of that mean:
        the differences' standard deviation (with S - 1) divided by the square root of S. The
        differences given are never all equal.
    """
    raise NotImplementedError


def sign_flip_p(differences):
    """13.2: how often differences of random sign have a sum as far from 0 as these.

    Parameters
    ----------
    differences : float64 array (S,), 1 <= S <= 12

    Returns
    -------
    float
        Of the 2**S ways to choose the sign of each difference, the share whose sum is at least as
        far from 0 as that of the differences themselves, on either side of 0. Sums that differ by
        no more than 1e-9 times the sum of all magnitudes are equal.
    """
    raise NotImplementedError


def ratio(first, second, rounds=5, clock=time.perf_counter):
    """13.3: how many times as long the second function takes.

    Parameters
    ----------
    first, second : callable
        Without arguments.
    rounds : int
        1 or more.
    clock : callable
        Returns the seconds since some fixed moment.

    Returns
    -------
    float
        Both functions are called once without being timed. Then, in each round, first is timed and
        straight after it second, a call each. A round's ratio is the seconds of second divided by
        the seconds of first; the answer is the median of the rounds' ratios.
    """
    raise NotImplementedError


def conv_ops(shape, filters, size, stride=1, padding=0, groups=1, binary=True):
    """13.4: the operations of a convolution, for one image.

    Parameters
    ----------
    shape : (channels, height, width)
        Of the image.
    filters : int
        Channels of the output.
    size : int
        Filters have size x size pixels.
    stride, padding : int
        In both directions, padding on all four sides.
    groups : int
        Number of groups that channels and filters are split into; it divides both. A filter sees
        the channels of its own group only. Depth-wise: groups = channels.
    binary : bool
        Whether weights and inputs are signs.

    Returns
    -------
    float
        Multiply-accumulates (a product and its addition are one; those with the padding count,
        too), divided by 64 for signs.
    """
    raise NotImplementedError


def least_seconds(m, n, k, peak, bandwidth):
    """13.5: a lower bound on the time of a product of packed signs.

    The rows of a (m, k) and of b (n, k) are signs in words of 64 bits, ceil(k / 64) words for each
    row. The result is m x n integers of 4 bytes. Each array is moved once.

    Parameters
    ----------
    m, n, k : int
    peak : float
        Products of two signs a second that the processor can count.
    bandwidth : float
        Bytes a second that memory delivers or takes.

    Returns
    -------
    float
        Seconds. Counting and moving may overlap.
    """
    raise NotImplementedError
