"""Aggregation: what clients send of a binary weight, and how the server combines it.

A strategy is a pair of rules for one array of latent weights. `encode` runs on a client, after its
training; `aggregate` runs on the server, on the messages of all clients. With w the weight at the
start of the round, w_k that of client k after its training, n_k its samples and N their sum:

    strategy                    up                          new weight
    FedAvg()                    w_k, float32                Σ n_k w_k / N
    FedAvg("float16")           w_k, float16                the same, rounded
    StochasticSign()            ±1, +1 with (1 + w_k) / 2   Σ n_k s_k / N, which is unbiased
    SignOfUpdate(η)             sign(w_k - w)               w + η Σ n_k s_k / N
    SignOfUpdate(η, both=True)  sign(w_k - w)               w + η sign(Σ n_k s_k)
    MajorityVote()              sign(w_k)                   sign(Σ n_k s_k)

The new weight travels down as floats, except for the last two, where it takes one bit: the sign is
either the weight, or all that a client needs to take the server's step as well.

The downlink is lossless, so server and clients always hold the same numbers. Sums run over the
clients in the order of their numbers, in float64, where every term n_k w_k of a float32 weight is
exact; the result does not depend on who answers first.

State other than latent weights is averaged (`combine`): batch norms and other floats as in FedAvg.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from tinybnn.federated.head import Entry, Head
from tinybnn.federated.wire import Field
from tinybnn.quantizers import sign
from tinybnn.typing import Array, FloatArray

# A float64 holds 24 bits of a float32 and 29 of a count of samples, summed over all clients.
MOST_SAMPLES: int = 1 << 29
MOST_STEPS: int = 31  # in one message; 32 are as long as the weights


class Aggregation:
    """Base class of strategies.

    Attributes
    ----------
    up, down : 'float32', 'float16' or 'bits'
        How latent weights travel; `down` may also be 'steps': the signs of all steps that a client
        has missed.
    """

    up: str = "float32"
    down: str = "float32"

    def start(self, weight: FloatArray) -> FloatArray:
        """Convert an initial weight to the server's first one; both float32 of the same shape."""
        return weight

    def encode(
        self, before: FloatArray, after: FloatArray, clip: float | None, rng: np.random.Generator
    ) -> Array:
        """Compute the update that a client sends.

        Parameters
        ----------
        before, after : float32 arrays of one shape
            Weights at the start of the round, and after the client's training.
        clip : float or None
            Bound of the latent weight.
        rng : numpy.random.Generator

        Returns
        -------
        array of the same shape
            Floats, or int8 of ±1 where `up` is 'bits'.
        """
        raise NotImplementedError

    def aggregate(
        self,
        before: FloatArray,
        received: Sequence[Array],
        samples: Sequence[int],
        clip: float | None,
        rng: np.random.Generator,
    ) -> FloatArray:
        """Compute the server's new weight.

        Parameters
        ----------
        before : float32 array
        received : list of arrays of the same shape
            The result of `encode` on each client.
        samples : list of int
            n_k of each client.
        clip, rng
            As in `encode`; the generator is the server's.

        Returns
        -------
        float32 array of the same shape
        """
        raise NotImplementedError

    def check(self, entry: Entry) -> None:
        """Raise a ValueError if the strategy cannot handle an Entry of kind 'latent'."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


def weighted_sum(arrays: Sequence[Array], weights: Sequence[float]) -> FloatArray:
    """Compute Σ weights[k] arrays[k] in the given order; arrays of one shape -> float64."""
    total = np.zeros(np.shape(arrays[0]))
    for array, weight in zip(arrays, weights, strict=True):
        total += weight * np.asarray(array, np.float64)
    return total


def weighted_mean(arrays: Sequence[Array], weights: Sequence[float]) -> FloatArray:
    """Compute Σ weights[k] arrays[k] / Σ weights; arrays of one shape -> float32.

    It is rounded once, at the end: the mean of equal arrays is that array, exactly, if the weights
    are integers whose sum is below `MOST_SAMPLES`.
    """
    return (weighted_sum(arrays, weights) / sum(weights)).astype(np.float32)


class FedAvg(Aggregation):
    """The mean of the weights (McMahan et al. 2017, algorithm 1).

    Parameters
    ----------
    dtype : 'float32' or 'float16'
        Format on the wire, in both directions, also for real-valued weights.
    """

    def __init__(self, dtype: str = "float32") -> None:
        if dtype not in ("float32", "float16"):
            raise ValueError(f"FedAvg: dtype must be 'float32' or 'float16', got {dtype!r}")
        self.dtype: str = dtype

    @property
    def up(self) -> str:
        return self.dtype

    down = up

    def start(self, weight: FloatArray) -> FloatArray:
        return weight.astype(self.dtype).astype(np.float32)

    def encode(
        self, before: FloatArray, after: FloatArray, clip: float | None, rng: np.random.Generator
    ) -> Array:
        return after.astype(self.dtype)

    def aggregate(
        self,
        before: FloatArray,
        received: Sequence[Array],
        samples: Sequence[int],
        clip: float | None,
        rng: np.random.Generator,
    ) -> FloatArray:
        return self.start(weighted_mean(received, samples))


class StochasticSign(Aggregation):
    """One random bit a weight, whose mean is the weight.

    With c the clip of the latent weight, the bit is +1 with probability (1 + w_k / c) / 2, so that
    E[c s_k] = w_k and the server's mean has the expectation of FedAvg. Its variance is c² - w_k²
    for each client: large, since most latent weights are small, and not decreasing during training.
    """

    up: str = "bits"

    def check(self, entry: Entry) -> None:
        if entry.clip is None:
            raise ValueError(
                f"StochasticSign: latent weights must be limited, {entry.name} has no clip_value"
            )

    def encode(
        self, before: FloatArray, after: FloatArray, clip: float | None, rng: np.random.Generator
    ) -> Array:
        probability = 0.5 + np.asarray(after, np.float64) / (2 * clip)
        return np.where(rng.random(after.shape) < probability, 1, -1).astype(np.int8)

    def aggregate(
        self,
        before: FloatArray,
        received: Sequence[Array],
        samples: Sequence[int],
        clip: float | None,
        rng: np.random.Generator,
    ) -> FloatArray:
        mean = weighted_sum(received, samples) / sum(samples)
        return (clip * mean).astype(np.float32)


class SignOfUpdate(Aggregation):
    """The sign of each weight's local update, and a step of the server in that direction.

    The server keeps float weights, so that small votes add up until a binary weight flips. With
    `both` it is signSGD with majority vote (Bernstein et al. 2018, algorithm 3), on the updates of
    local training instead of gradients.

    An update of exactly 0 has no direction, nor has a tied vote: a fair coin decides. (A fixed sign
    would push every weight that does not learn in one direction.)

    Parameters
    ----------
    step : float
        The server's step η, in units of latent weights.
    both : bool
        Send one bit a weight on the way down too: clients that hold the weights of an earlier round
        receive the directions of the steps since then, and take these steps as well.
    """

    up: str = "bits"

    def __init__(self, step: float = 0.02, both: bool = False) -> None:
        if not 0 < step < math.inf:
            raise ValueError(f"SignOfUpdate: step must be a number above 0, got {step!r}")
        self.step: float = float(step)
        self.both: bool = bool(both)

    @property
    def down(self) -> str:
        return "steps" if self.both else "float32"

    def encode(
        self, before: FloatArray, after: FloatArray, clip: float | None, rng: np.random.Generator
    ) -> Array:
        return _direction(after - before, rng)

    def aggregate(
        self,
        before: FloatArray,
        received: Sequence[Array],
        samples: Sequence[int],
        clip: float | None,
        rng: np.random.Generator,
    ) -> FloatArray:
        votes = weighted_sum(received, samples)
        votes = _direction(votes, rng) if self.both else votes / sum(samples)
        return self.move(before, votes, clip)

    def move(self, weight: FloatArray, direction: Array, clip: float | None) -> FloatArray:
        """Take a step, with the same operations on server and clients.

        Parameters
        ----------
        weight : float32 array
        direction : array of the same shape
            From -1 to 1.
        clip : float or None

        Returns
        -------
        float32 array of the same shape
        """
        moved = weight + np.float32(self.step) * direction.astype(np.float32)
        return moved if clip is None else np.clip(moved, np.float32(-clip), np.float32(clip))

    def direction(self, before: FloatArray, after: FloatArray) -> Array:
        """Compute a direction in which `move` leads from one weight to the other.

        A weight that did not change was held back by its clip: its direction was outwards.

        Parameters
        ----------
        before, after : float32 arrays of one shape

        Returns
        -------
        int8 array of the same shape, ±1
        """
        return sign(np.where(after == before, before, after - before)).astype(np.int8)


def _direction(x, rng):
    """Compute sign(x) as int8; a coin decides for zeros."""
    coin = rng.integers(0, 2, x.shape, np.int8) * np.int8(2) - np.int8(1)
    return np.where(x == 0, coin, np.where(x > 0, 1, -1)).astype(np.int8)


class MajorityVote(Aggregation):
    """The sign of the majority, weighted by samples: one bit each way. It does not learn.

    It looks like the natural average of binary networks, and is kept to show why it is not. The
    server knows nothing of a weight but its sign, so clients begin each round at ±1, where a flip
    takes a local change of more than 1; the few steps of a round change a weight by a fraction of
    that, and the next broadcast discards what they learned. A tie keeps the old sign.
    """

    up: str = "bits"
    down: str = "bits"

    def start(self, weight: FloatArray) -> FloatArray:
        return sign(weight)

    def encode(
        self, before: FloatArray, after: FloatArray, clip: float | None, rng: np.random.Generator
    ) -> Array:
        return sign(after).astype(np.int8)

    def aggregate(
        self,
        before: FloatArray,
        received: Sequence[Array],
        samples: Sequence[int],
        clip: float | None,
        rng: np.random.Generator,
    ) -> FloatArray:
        votes = weighted_sum(received, samples)
        return np.where(votes == 0, before, sign(votes)).astype(np.float32)


# --------------------------------------------------------------------------------- whole messages


def fields(
    aggregation: Aggregation, entries: Iterable[Entry], direction: str, steps: int | None = None
) -> dict[str, Field]:
    """Describe how the arrays of the head travel.

    Parameters
    ----------
    aggregation : Aggregation
    entries : sequence of Entry
    direction : 'up' or 'down'
    steps : int, optional
        Number of steps, where latent weights go down as steps. By default they go as floats, for
        clients that hold none yet.

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


def starting_state(aggregation: Aggregation, head: Head) -> dict[str, Array]:
    """Compute the server's first state, by name, from the weights of the head's model.

    Returns
    -------
    dict of str to array
        float32 and int64, with the shapes of the entries.
    """
    state = head.read()
    for entry in head.entries:
        if entry.kind == "latent":
            aggregation.check(entry)
        state[entry.name] = start(aggregation, entry, state[entry.name])
    return state


def start(aggregation: Aggregation, entry: Entry, array: Array) -> Array:
    """Convert an array of the server to one that the downlink carries without loss."""
    return aggregation.start(array) if _has_rule(aggregation, entry) else array


def update(
    aggregation: Aggregation,
    entries: Iterable[Entry],
    before: dict[str, Array],
    after: dict[str, Array],
    rng: np.random.Generator,
) -> dict[str, Array]:
    """Compute what a client sends of its state.

    Parameters
    ----------
    aggregation : Aggregation
    entries : sequence of Entry
    before, after : dict of arrays
        The shared state at the start of the round, and after the client's training.
    rng : numpy.random.Generator
        Drawn from in the order of the entries.

    Returns
    -------
    dict of str to array
        With the shapes of the entries.
    """
    return {
        e.name: aggregation.encode(before[e.name], after[e.name], e.clip, rng)
        if _has_rule(aggregation, e)
        else after[e.name]
        for e in entries
    }


def combine(
    aggregation: Aggregation,
    entries: Iterable[Entry],
    before: dict[str, Array],
    updates: Sequence[dict[str, Array]],
    samples: Sequence[int],
    rng: np.random.Generator,
) -> dict[str, Array]:
    """Compute the server's new state from the updates of its clients.

    Parameters
    ----------
    aggregation : Aggregation
    entries : sequence of Entry
    before : dict of arrays
        The shared state at the start of the round.
    updates : list of dicts
        Results of `update`, in the order of the clients' numbers.
    samples : list of int
    rng : numpy.random.Generator
        The server's, for ties.

    Returns
    -------
    dict of str to array
        Floats are weighted means, counters the maximum over clients.
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
        received, old = [update[entry.name] for update in updates], before[entry.name]
        if _has_rule(aggregation, entry):
            state[entry.name] = aggregation.aggregate(old, received, samples, entry.clip, rng)
        elif entry.kind == "counter":
            state[entry.name] = np.max(received, axis=0).astype(old.dtype)
        else:
            state[entry.name] = weighted_mean(received, samples)
    return state


def _has_rule(aggregation, entry):
    """Whether the strategy handles an entry; otherwise it is averaged."""
    return entry.kind == "latent" or (entry.kind == "real" and isinstance(aggregation, FedAvg))
