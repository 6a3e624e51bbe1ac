"""Aggregation: what clients send of a binary weight, and what the server makes of it.

A strategy is a pair of rules for one array of latent weights. `encode` runs on a client, after its
training; `aggregate` runs on the server, on what the clients sent. With w the weight that the round
began with, w_k that of client k after its training, n_k its samples and N their sum:

    strategy                    up                          new weight
    FedAvg()                    w_k, float32                Σ n_k w_k / N
    FedAvg("float16")           w_k, float16                the same, rounded
    StochasticSign()            ±1, +1 with (1 + w_k) / 2   Σ n_k s_k / N, which is unbiased
    SignOfUpdate(η)             sign(w_k - w)               w + η Σ n_k s_k / N
    SignOfUpdate(η, both=True)  sign(w_k - w)               w + η sign(Σ n_k s_k)
    MajorityVote()              sign(w_k)                   sign(Σ n_k s_k)

The new weight travels down as floats, but for the last two, where it is one bit a weight: the sign
is all that a client needs to take the server's step itself, or it is the weight.

Whatever goes down can be written without loss, so that the server and the clients always hold the
same numbers. Sums run over the clients in the order of their numbers, in float64, where every term
n_k w_k of a float32 weight is exact; the result does not depend on who answers first.

All else than latent weights is averaged (`combine`): batch norms and other floats as in FedAvg.
"""

from __future__ import annotations

import math

import numpy as np

from tinybnn.federated.wire import Field
from tinybnn.quantizers import sign

MOST_SAMPLES = 1 << 29  # of all clients: 24 bits of a float32 and 29 of a count fit into a float64
MOST_STEPS = 31  # in one message; 32 are as long as the weights themselves


class Aggregation:
    """Base class.

    Attributes
    ----------
    up, down : 'float32', 'float16' or 'bits'
        How latent weights travel; `down` may also be 'steps': the signs of all steps that a client
        has missed.
    """

    up = down = "float32"

    def start(self, weight):
        """The server's first weight, made of the initial one."""
        return weight

    def encode(self, before, after, clip, rng):
        """What a client sends.

        Parameters
        ----------
        before, after : float32 arrays of one shape
            Weights as the round began, and behind the client's training.
        clip : float or None
            Of the latent weight.
        rng : numpy.random.Generator

        Returns
        -------
        array of the same shape
            Floats, or int8 of ±1 where `up` is 'bits'.
        """
        raise NotImplementedError

    def aggregate(self, before, received, samples, clip, rng):
        """The server's new weight.

        Parameters
        ----------
        before : float32 array
        received : list of arrays of the same shape
            What `encode` gave on each client.
        samples : list of int
            n_k of each.
        clip, rng
            As in `encode`; the generator is the server's.

        Returns
        -------
        float32 array of the same shape
        """
        raise NotImplementedError

    def check(self, entry):
        """Raise a ValueError if the strategy cannot handle an Entry of kind 'latent'."""

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


def weighted_sum(arrays, weights):
    """Σ weights[k] arrays[k] in float64, in the order given."""
    total = np.zeros(np.shape(arrays[0]))
    for array, weight in zip(arrays, weights, strict=True):
        total += weight * np.asarray(array, np.float64)
    return total


def weighted_mean(arrays, weights):
    """Σ weights[k] arrays[k] / Σ weights, rounded to float32 once, at the end.

    Of equal arrays it is that array, exactly, as long as the weights are integers that sum to less
    than `MOST_SAMPLES`.
    """
    return (weighted_sum(arrays, weights) / sum(weights)).astype(np.float32)


class FedAvg(Aggregation):
    """The mean of the weights (McMahan et al. 2017, algorithm 1).

    Parameters
    ----------
    dtype : 'float32' or 'float16'
        Of the wire, in both directions; it holds for weights that are not binary as well.
    """

    def __init__(self, dtype="float32"):
        if dtype not in ("float32", "float16"):
            raise ValueError(f"FedAvg: dtype must be 'float32' or 'float16', got {dtype!r}")
        self.dtype = dtype

    @property
    def up(self):
        return self.dtype

    down = up

    def start(self, weight):
        return weight.astype(self.dtype).astype(np.float32)

    def encode(self, before, after, clip, rng):
        return after.astype(self.dtype)

    def aggregate(self, before, received, samples, clip, rng):
        return self.start(weighted_mean(received, samples))


class StochasticSign(Aggregation):
    """One random bit a weight, whose mean is the weight.

    With c the clip of the latent weight, the bit is +1 with probability (1 + w_k / c) / 2, so that
    E[c s_k] = w_k and the server's mean has the expectation of FedAvg. Its variance is c² - w_k²
    for each client: large, since most latent weights are small, and no smaller as training goes on.
    """

    up = "bits"

    def check(self, entry):
        if entry.clip is None:
            raise ValueError(
                f"StochasticSign: latent weights must be limited, {entry.name} has no clip_value"
            )

    def encode(self, before, after, clip, rng):
        probability = 0.5 + np.asarray(after, np.float64) / (2 * clip)
        return np.where(rng.random(after.shape) < probability, 1, -1).astype(np.int8)

    def aggregate(self, before, received, samples, clip, rng):
        mean = weighted_sum(received, samples) / sum(samples)
        return (clip * mean).astype(np.float32)


class SignOfUpdate(Aggregation):
    """The sign of what training did to each weight, and a step of the server in that direction.

    The server keeps float weights, so that small votes gather until a binary weight flips. With
    `both` it is signSGD with majority vote (Bernstein et al. 2018, algorithm 3), on updates of
    local training in place of gradients.

    An update of exactly 0 has no direction, nor has a tied vote: a fair coin decides. (A fixed sign
    would push all weights that do not learn in one direction.)

    Parameters
    ----------
    step : float
        The server's step η, in units of latent weights.
    both : bool
        One bit a weight on the way down too: clients that hold the weights of an earlier round get
        the directions of the steps since then, and take them themselves.
    """

    up = "bits"

    def __init__(self, step=0.02, both=False):
        if not 0 < step < math.inf:
            raise ValueError(f"SignOfUpdate: step must be a number above 0, got {step!r}")
        self.step, self.both = float(step), bool(both)

    @property
    def down(self):
        return "steps" if self.both else "float32"

    def encode(self, before, after, clip, rng):
        return _direction(after - before, rng)

    def aggregate(self, before, received, samples, clip, rng):
        votes = weighted_sum(received, samples)
        votes = _direction(votes, rng) if self.both else votes / sum(samples)
        return self.move(before, votes, clip)

    def move(self, weight, direction, clip):
        """The weight after a step; server and clients do the same operations."""
        moved = weight + np.float32(self.step) * direction.astype(np.float32)
        return moved if clip is None else np.clip(moved, np.float32(-clip), np.float32(clip))

    def direction(self, before, after):
        """A direction, int8 of ±1, in which `move` leads from one weight to the other.

        Where the weight did not change, its clip held it back: the direction was outwards.
        """
        return sign(np.where(after == before, before, after - before)).astype(np.int8)


def _direction(x, rng):
    """sign(x) as int8, with a coin for zeros."""
    coin = rng.integers(0, 2, x.shape, np.int8) * np.int8(2) - np.int8(1)
    return np.where(x == 0, coin, np.where(x > 0, 1, -1)).astype(np.int8)


class MajorityVote(Aggregation):
    """The sign that most samples' clients have at the weight: one bit each way. It does not learn.

    It looks like the natural average of binary networks, and it is kept to show why it is not. All
    that the server knows of a weight is its sign, so clients begin each round at ±1, where a flip
    takes a local change of more than 1; the few steps of a round change it by a fraction of that,
    and all that they learned is gone with the next broadcast. A tie keeps the old sign.
    """

    up = down = "bits"

    def start(self, weight):
        return sign(weight)

    def encode(self, before, after, clip, rng):
        return sign(after).astype(np.int8)

    def aggregate(self, before, received, samples, clip, rng):
        votes = weighted_sum(received, samples)
        return np.where(votes == 0, before, sign(votes)).astype(np.float32)


# --------------------------------------------------------------------------------- whole messages


def fields(aggregation, entries, direction, steps=None):
    """How the arrays of the head travel.

    Parameters
    ----------
    aggregation : Aggregation
    entries : sequence of Entry
    direction : 'up' or 'down'
    steps : int, optional
        Where latent weights go down as steps: how many. By default they go as floats, for clients
        that hold none yet.

    Returns
    -------
    dict of str to wire.Field
    """
    result = {}
    for entry in entries:
        encoding, times = "int64" if entry.kind == "counter" else "float32", 1
        if _has_rule(aggregation, entry):
            encoding = getattr(aggregation, direction)
        if encoding == "steps":
            encoding, times = ("float32", 1) if steps is None else ("bits", steps)
        shape = entry.shape
        if encoding == "bits":  # one row for each output
            shape = (times * shape[0], math.prod(shape[1:]))
        result[entry.name] = Field(encoding, shape)
    return result


def starting_state(aggregation, head):
    """The server's first state: name -> array, of the head's model."""
    state = head.read()
    for entry in head.entries:
        if entry.kind == "latent":
            aggregation.check(entry)
        if _has_rule(aggregation, entry):
            state[entry.name] = aggregation.start(state[entry.name])
    return state


def update(aggregation, entries, before, after, rng):
    """What a client sends of its state: name -> array.

    Parameters
    ----------
    aggregation : Aggregation
    entries : sequence of Entry
    before, after : dict of arrays
        The shared state as the round began, and behind the client's training.
    rng : numpy.random.Generator
        Drawn from in the order of the entries.
    """
    return {
        e.name: aggregation.encode(before[e.name], after[e.name], e.clip, rng)
        if _has_rule(aggregation, e)
        else after[e.name]
        for e in entries
    }


def combine(aggregation, entries, before, updates, samples, rng):
    """The server's new state, made of what clients sent.

    Parameters
    ----------
    aggregation : Aggregation
    entries : sequence of Entry
    before : dict of arrays
        The shared state as the round began.
    updates : list of dicts
        What `update` gave, in the order of the clients' numbers.
    samples : list of int
    rng : numpy.random.Generator
        The server's, for ties.

    Returns
    -------
    dict of arrays
        Floats are weighted means, counters the largest of all.
    """
    if not updates or len(updates) != len(samples):
        raise ValueError(
            f"combine: expects one number of samples for each update and one update at least, "
            f"got {len(updates)} updates and {len(samples)} numbers"
        )
    if min(samples) < 1 or sum(samples) >= MOST_SAMPLES:
        raise ValueError(
            f"combine: samples must be >= 1 and sum to less than {MOST_SAMPLES:,}, got {samples}"
        )
    state = {}
    for entry in entries:
        received = [one[entry.name] for one in updates]
        if _has_rule(aggregation, entry):
            state[entry.name] = aggregation.aggregate(
                before[entry.name], received, samples, entry.clip, rng
            )
        elif entry.kind == "counter":
            state[entry.name] = np.max(received, axis=0).astype(before[entry.name].dtype)
        else:
            state[entry.name] = weighted_mean(received, samples)
    return state


def _has_rule(aggregation, entry):
    """Whether the strategy handles an entry, in place of the plain mean."""
    return entry.kind == "latent" or (entry.kind == "real" and isinstance(aggregation, FedAvg))
