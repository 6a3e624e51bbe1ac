"""Chapter 07: bits that are drawn at random, and estimators of their gradient.

Write the missing bodies, then check them: tinybnn course check 07
Each one is checked separately, with correct versions of the others.
"""

import numpy as np

from mybnn.engine import Tensor


def sigmoid(x):
    """1 / (1 + exp(-x)) of an array, without overflow. It is complete."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def all_codes(bits):
    """Every code of this many bits, a row each: (2**bits, bits) float64. It is complete."""
    numbers = np.arange(2**bits)[:, None]
    return np.where((numbers >> np.arange(bits)) & 1, 1.0, -1.0)


def code_probabilities(logits, codes):
    """The probability of each code (M,), for logits (bits,) and codes (M, bits). It is complete.

    Bit i is +1 with probability sigmoid(logits[i]), and -1 with probability sigmoid(-logits[i]).
    """
    return sigmoid(codes * logits).prod(axis=-1)


def sample_bits(p, uniform):
    """07.1: bits +1 and -1, drawn with given random numbers.

    Parameters
    ----------
    p : array of floats
        The probability of +1, from 0 to 1, ends included.
    uniform : array of floats, of the shape of p
        Random numbers, all equally likely: from 0, which occurs, to 1, which does not.

    Returns
    -------
    array of the shape and dtype of p: +1 or -1
    """
    raise NotImplementedError


def exact_gradient(logits, cost):
    """07.2: the gradient of the expected cost with respect to the logits, by a sum over all codes.

    The expected cost is the sum of code_probabilities(logits, codes) * cost(codes).

    Parameters
    ----------
    logits : (bits,) float64
        Few: there are 2**bits codes.
    cost : callable
        Takes codes (M, bits) and returns their costs (M,).

    Returns
    -------
    (bits,) float64
    """
    raise NotImplementedError


def score_function(logits, codes, costs, baseline=0.0):
    """07.3: the score-function estimate (REINFORCE) of that gradient, from each code alone.

    (cost - baseline) times the derivative of log(probability of the code) in each logit.

    Parameters
    ----------
    logits : (bits,) float64
    codes : (M, bits) float64
        Drawn codes, +1 and -1.
    costs : (M,) float64
        The cost of each code.
    baseline : float
        Any number that does not depend on the codes.

    Returns
    -------
    (M, bits) float64
        One estimate a row; their mean over codes that are drawn is right on average.
    """
    raise NotImplementedError


def straight_through(logits, uniform):
    """07.4: drawn bits as an operation of your engine, with the gradient of their mean.

    Parameters
    ----------
    logits : Tensor (..., bits)
    uniform : array of its shape
        Random numbers for `sample_bits`.

    Returns
    -------
    Tensor of the shape and dtype of logits
        Its data are bits: +1 with probability sigmoid(logits.data), else -1. Its only parent is
        logits. The mean of a bit is 2 sigmoid(l) - 1; the rule returns a tuple of one array, the
        incoming gradient times the slope of that mean.
    """
    raise NotImplementedError


def kl_to_coin(logits):
    """07.5: how far the bits are from fair coins: KL(q || coin) in nats, for logits of any size.

    For one bit with p = sigmoid(l) it is p ln(2 p) + (1 - p) ln(2 (1 - p)), where 0 ln(0) is 0:
    0 nats at l = 0, and close to ln 2 for a bit that is all but certain.

    Parameters
    ----------
    logits : (..., bits) float64
        -1000 and 1000 give ln 2, without a warning.

    Returns
    -------
    (...) float64
        The sum over the bits.
    """
    raise NotImplementedError
