"""Chapter 06: batch norm and sign as one integer comparison, and a network that runs on words.

Write the missing bodies, then check them: tinybnn course check 06
Each one is checked separately, with correct versions of the others.
"""

import numpy as np

from mybnn.packing import pack, xnor_matmul


def normalized(a, mean, var, gamma, beta, eps=1e-5):
    """06.1: batch norm with fixed statistics, as the float network computes it.

    ((a - mean) / sqrt(var + eps)) * gamma + beta in exactly this order, each operation in float32.

    Parameters
    ----------
    a : (..., M) integers or float32
        The sums of M channels. Convert integers to float32 first: in NumPy an int32 array minus
        a float32 array is float64.
    mean, var, gamma, beta : (M,) float32
    eps : float

    Returns
    -------
    (..., M) float32
    """
    a = np.asarray(a, np.float32)
    return (a - mean) / np.sqrt(var + np.float32(eps)) * gamma + beta


def fold(limit, mean, var, gamma, beta, eps=1e-5):
    """06.2: the comparison that replaces batch norm and sign, for each channel.

    For every integer a from -limit to limit, `normalized(a) >= 0` is exactly
    `(a >= threshold) != flipped`. A channel that is always +1 gets the threshold -limit, and one
    that is always -1 gets limit + 1; neither is flipped.

    Parameters
    ----------
    limit : int
        The largest sum: the number of products in it.
    mean, var, gamma, beta : (M,) float32
    eps : float

    Returns
    -------
    thresholds : (M,) int64
    flipped : (M,) bool
        True where the sign changes from +1 to -1.
    """
    sums = np.arange(-limit, limit + 1)
    plus = normalized(sums[:, None], mean, var, gamma, beta, eps) >= 0  # (2 limit + 1, M)
    changes = plus[1:] != plus[:-1]  # row i: between the sums i - limit and i - limit + 1
    changed = changes.any(axis=0)
    constant = np.where(plus[0], -limit, limit + 1)
    thresholds = np.where(changed, changes.argmax(axis=0) + 1 - limit, constant)
    return thresholds, changed & plus[0]


def fold_pooled(bits, flipped):
    """06.3: max-pooling of 2 x 2 sums before batch norm and sign, computed on sign bits.

    `bits` are the comparisons of all sums, (sums >= threshold) != flipped. The result equals
    comparing the largest sum of each window, but the sums are not available.

    Parameters
    ----------
    bits : (N, M, H, W) bool
        H and W are even.
    flipped : (M,) bool

    Returns
    -------
    (N, M, H // 2, W // 2) bool
    """
    n, m, height, width = bits.shape
    windows = bits.reshape(n, m, height // 2, 2, width // 2, 2)
    one, every = windows.any(axis=(3, 5)), windows.all(axis=(3, 5))
    return np.where(flipped[:, None, None], every, one)


def packed_predict(layers, x):
    """06.4: the scores of a binary network of dense layers, on words and integers only.

    Parameters
    ----------
    layers : list of dicts
        Each has "words", the packed signs of its weights (M, W), and "k", the number of its
        inputs. All but the last have "thresholds" and "flipped", (M,) each, from `fold`.
    x : (N, K) float32
        Signs, +1 and -1.

    Returns
    -------
    (N, M) int32
        The integer sums of the last layer.
    """
    words = pack(x)
    for layer in layers[:-1]:
        sums = xnor_matmul(words, layer["words"], layer["k"])
        plus = (sums >= layer["thresholds"]) != layer["flipped"]
        words = pack(np.where(plus, np.float32(1), np.float32(-1)))
    return xnor_matmul(words, layers[-1]["words"], layers[-1]["k"])
