"""Chapter 09: federated averaging, votes of signs, and a server's step with one bit a weight.

Write the missing bodies, then check them: tinybnn course check 09
Each one is checked separately, with correct versions of the others.
"""

import math

import numpy as np

from mybnn.packing import pack


def weighted_mean(arrays, counts):
    """09.1: federated averaging of one weight: the clients' arrays, weighted by their samples.

    Parameters
    ----------
    arrays : list of float32 arrays of one shape
        What each client has trained.
    counts : list of int
        The number of samples of each client.

    Returns
    -------
    float32 array of the same shape
        sum(n_k * w_k) / sum(n_k), computed in float64 and rounded to float32 once, at the end.
    """
    total = sum(n * w.astype(np.float64) for n, w in zip(counts, arrays, strict=True))
    return (total / sum(counts)).astype(np.float32)


def majority_vote(signs, counts, before):
    """09.2: the sign that most samples are for; the old one where the votes are equal.

    Parameters
    ----------
    signs : list of float32 arrays of +1 and -1, all of one shape
        The signs of each client's weights.
    counts : list of int
        A client with n samples has n votes.
    before : float32 array of +1 and -1
        The signs at the start of the round.

    Returns
    -------
    float32 array of +1 and -1
    """
    votes = sum(n * s for n, s in zip(counts, signs, strict=True))
    return np.where(votes == 0, before, np.where(votes > 0, 1, -1)).astype(np.float32)


def update_bits(before, after, coin):
    """09.3: what a client sends: the sign of each weight's change, one bit each.

    Parameters
    ----------
    before, after : (M, K) float32
        Latent weights at the start of the round, and after the client's training.
    coin : (M, K) float32 of +1 and -1
        Decides where a weight has not changed.

    Returns
    -------
    (M, ceil(K / 64)) uint64
        The signs, packed as in chapter 04; bit 1 is +1.
    """
    return pack(np.where(after == before, coin, np.where(after > before, 1, -1)))


def unpack(words, k):
    """Rows of words (M, W) as rows of k signs, float32 +1 and -1. It is complete."""
    bits = words[:, :, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
    bits = bits.reshape(len(words), -1)[:, :k]
    return np.where(bits == 1, np.float32(1), np.float32(-1))


def server_step(weight, messages, counts, step=0.02, limit=1.0):
    """09.4: the server's new weight: a small step in the direction of the votes, then clipped.

    Parameters
    ----------
    weight : (M, K) float32
        The latent weights at the start of the round.
    messages : list of (M, W) uint64
        From each client, what `update_bits` returned; `unpack` gives its signs s_k.
    counts : list of int
        The number of samples of each client.
    step, limit : float

    Returns
    -------
    (M, K) float32
        weight + step * sum(n_k * s_k) / sum(n_k), clipped to [-limit, limit].
    """
    signs = [unpack(words, weight.shape[1]) for words in messages]
    moved = weight + np.float32(step) * weighted_mean(signs, counts)
    return np.clip(moved, np.float32(-limit), np.float32(limit))


def stochastic_sign(weight, uniform):
    """09.5: a random sign for each weight, whose expectation is the weight.

    Parameters
    ----------
    weight : float32 array
        Latent weights in [-1, 1].
    uniform : float array of the same shape
        Random numbers, uniform in [0, 1): the only source of chance.

    Returns
    -------
    float32 array of +1 and -1
    """
    return np.where(uniform < (1 + weight) / 2, np.float32(1), np.float32(-1))


def message_bytes(shapes, one_bit=True):
    """09.6: how many bytes the arrays of one message take, without a header.

    Parameters
    ----------
    shapes : list of tuples of int
        An array with one axis is a bias or belongs to a batch norm: it always travels as float32.
        With two axes or more it is a weight; its first axis counts rows, one for each output.
    one_bit : bool
        Whether weights travel as bits; each row then fills whole bytes. Else as float32.

    Returns
    -------
    int
    """
    total = 0
    for shape in shapes:
        if one_bit and len(shape) > 1:
            total += shape[0] * -(-math.prod(shape[1:]) // 8)
        else:
            total += 4 * math.prod(shape)
    return total
