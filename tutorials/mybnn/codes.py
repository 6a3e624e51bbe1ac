"""Chapter 08: codes as words, and a binary head that runs on them.

Write the missing bodies, then check them: tinybnn course check 08
Each one is checked separately, with correct versions of the others.
"""

import numpy as np

from mybnn.packing import pack, popcount_words, xnor_matmul


def pack_codes(logits):
    """08.1: the code of each row of logits, as words.

    A stored code is not drawn: each bit takes its likelier value, +1 where the logit is >= 0.

    Parameters
    ----------
    logits : (N, bits) array of floats

    Returns
    -------
    (N, ceil(bits / 64)) uint64, as `pack` makes them
    """
    raise NotImplementedError


def unpack_codes(words, bits):
    """08.2: the signs of packed codes, the input on which a head is trained.

    Parameters
    ----------
    words : (N, W) uint64
        As `pack` makes them: bit i of word j is sign 64 * j + i.
    bits : int
        Number of signs in a row, at most 64 W.

    Returns
    -------
    (N, bits) float32 of +1 and -1
    """
    raise NotImplementedError


def nearest(queries, words):
    """08.3: the most similar of the stored codes, for each query.

    Parameters
    ----------
    queries : (N, W) uint64
    words : (M, W) uint64
        Packed codes of as many bits; their unused bits are 0.

    Returns
    -------
    rows : (N,) int64
        The stored code in which the fewest bits differ; the first one, if there are several.
    distances : (N,) int64
        The number of these bits.
    """
    raise NotImplementedError


def predict_words(layers, words):
    """08.4: the scores of a binary head, from stored codes: `packed_predict` of 06.4 behind `pack`.

    Parameters
    ----------
    layers : list of dicts
        Each has "words", the packed signs of its weights (M, W), and "k", the number of its
        inputs. All but the last have "thresholds" and "flipped", (M,) each: a unit is +1 where
        (sum >= threshold) != flipped.
    words : (N, W) uint64
        Packed codes.

    Returns
    -------
    (N, M) int32
        The integer sums of the last layer.
    """
    raise NotImplementedError
