"""Chapter 09: federated averaging, votes of signs, and a server's step with one bit a weight."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np

from tinybnn.course.checks.packing import place
from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all, provided

_TOLERANCE = 1e-6
_STEPS = 1000  # of the evenly spaced numbers that stand for chance


def _sum(arrays, counts):
    return sum(n * a.astype(np.float64) for n, a in zip(counts, arrays, strict=True))


def _mean(arrays, counts):
    return (_sum(arrays, counts) / sum(counts)).astype(np.float32)


def _is_float32(name, answer, inputs):
    if np.asarray(answer).dtype != np.float32:
        raise Wrong(f"{name} does not return float32", inputs, np.asarray(answer).dtype, "float32")


# ------------------------------------------------------------------------------------------- mean


_MEAN_MISTAKES = {
    "all clients count the same; a client with more samples counts more, n_k times":
        lambda arrays, counts: np.mean(arrays, axis=0),
    "the sum is divided by the number of clients; divide by the number of all samples, sum(counts)":
        lambda arrays, counts: _sum(arrays, counts) / len(counts),
    "the sum is not divided by the number of all samples": _sum,
    "these are signs; the mean is one of the latent weights themselves":
        (lambda arrays, counts: np.where(_mean(arrays, counts) >= 0, 1, -1),
         lambda arrays, counts: _mean([np.where(a >= 0, 1, -1) for a in arrays], counts)),
    "each client is weighted by 1 / n_k; more samples must count more":
        lambda arrays, counts: _sum(arrays, 1 / np.array(counts)) / np.sum(1 / np.array(counts)),
    "only the first client counts": lambda arrays, counts: arrays[0],
}  # fmt: skip
_MEAN = {"arrays": [np.float32([0.25, -0.5]), np.float32([-0.75, 1.0])], "counts": [3, 1]}


def mean_values(averaging: ModuleType) -> None:
    """weighted_mean weights each client by its samples."""
    from hypothesis import strategies as st

    def check(counts, seed):
        arrays = list(np.random.default_rng(seed).integers(-8, 9, (len(counts), 2, 3)) / 8)
        inputs = {"arrays": [a.astype(np.float32) for a in arrays], "counts": counts}
        compare(averaging.weighted_mean, _mean, inputs, _MEAN_MISTAKES, _TOLERANCE, [_MEAN])

    compare(averaging.weighted_mean, _mean, _MEAN, _MEAN_MISTAKES, _TOLERANCE)
    _is_float32("weighted_mean", call(averaging.weighted_mean, _MEAN), _MEAN)
    counts = st.lists(st.integers(1, 9), min_size=1, max_size=4)
    for_all(check, examples=50, counts=counts, seed=st.integers(0, 99))


def mean_changes_nothing(averaging: ModuleType) -> None:
    """the clients' arrays stay as they are."""
    arrays = [a.copy() for a in _MEAN["arrays"]]
    averaging.weighted_mean(arrays, _MEAN["counts"])
    for got, before in zip(arrays, _MEAN["arrays"], strict=True):
        if not np.array_equal(got, before):
            why = "weighted_mean writes into a client's array; a += or *= changes the array itself"
            raise Wrong(why, _MEAN, got, before, labels=("after", "before"))


def mean_rounds_once(averaging: ModuleType) -> None:
    """the mean of equal arrays is that array, bit for bit: float64 inside, rounded at the end."""
    array = np.random.default_rng(0).uniform(-1, 1, 500).astype(np.float32)
    inputs = {"arrays": [array] * 3, "counts": [287, 3, 101]}
    got = np.asarray(call(averaging.weighted_mean, inputs))
    if not np.array_equal(got, array):
        i = np.flatnonzero(got != array)[0]
        one = array[i : i + 1]
        raise Wrong(
            "three equal arrays have another mean than themselves: products and sums are rounded "
            "to float32; compute in float64, and convert the mean at the end",
            {"arrays": [one] * 3, "counts": inputs["counts"]}, got[i : i + 1], one,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------- vote


def _votes(tie):
    def vote(signs, counts, before):
        votes = _sum(signs, counts)
        return np.where(votes == 0, before if tie is None else tie, np.where(votes > 0, 1, -1))

    return vote


_vote = _votes(None)
_VOTE_MISTAKES = {
    "where the votes are equal, sign(0) = +1 is taken; a tie must leave the old sign, or every "
    "undecided weight drifts to +1": _votes(1),
    "where the votes are equal, the answer is 0, as np.sign gives; a tie must leave the old sign":
        _votes(0),
    "where the votes are equal, the answer is -1; a tie must leave the old sign": _votes(-1),
    "each client has one vote; it must have as many as it has samples":
        lambda signs, counts, before: _vote(signs, [1] * len(signs), before),
    "this is the mean of the votes; what wins is its sign":
        (lambda signs, counts, before: _mean(signs, counts),
         lambda signs, counts, before: np.mean(signs, axis=0)),
    "these are the numbers of votes; what wins is the sign":
        lambda signs, counts, before: _sum(signs, counts),
    "the minority wins": lambda signs, counts, before: np.where(
        _sum(signs, counts) == 0, before, -_vote(signs, counts, before)),
    "`before` votes too; it decides only where the votes are equal":
        (lambda signs, counts, before: _vote([*signs, before], [*counts, 1], before),
         lambda signs, counts, before: np.sign(before + _sum(signs, counts))),
}  # fmt: skip
_VOTE = {
    "signs": [np.float32([1, 1, 1, -1]), np.float32([-1, -1, 1, 1]), np.float32([-1, -1, -1, 1])],
    "counts": [5, 2, 3],
    "before": np.float32([-1, 1, 1, -1]),
}
_VOTE_PROBES = [
    _VOTE,
    {"signs": [np.float32([1, -1]), np.float32([-1, 1]), np.float32([-1, 1])],
     "counts": [7, 2, 3], "before": np.float32([-1, -1])},
]  # fmt: skip


def vote_values(averaging: ModuleType) -> None:
    """the sign with most samples behind it wins, and a tie keeps the old sign."""
    from hypothesis import strategies as st

    function = averaging.majority_vote

    def check(counts, seed):
        rng = np.random.default_rng(seed)
        *signs, before = rng.choice(np.float32([-1, 1]), (len(counts) + 1, 2, 3))
        inputs = {"signs": signs, "counts": counts, "before": before}
        compare(function, _vote, inputs, _VOTE_MISTAKES, probes=_VOTE_PROBES)

    for inputs in _VOTE_PROBES:
        compare(function, _vote, inputs, _VOTE_MISTAKES, probes=_VOTE_PROBES)
    counts = st.lists(st.integers(1, 4), min_size=1, max_size=4)
    for_all(check, examples=100, counts=counts, seed=st.integers(0, 99))
    _is_float32("majority_vote", call(function, _VOTE), _VOTE)


# ----------------------------------------------------------------------------------------- update


def _words(name, answer, shape, inputs):
    """Check that an answer is the words of signs of a shape (M, K)."""
    wanted = (shape[0], -(-shape[1] // 64))
    if answer is None:
        raise Wrong(f"{name} returns None: is a return missing?", inputs)
    words = np.asarray(answer)
    if words.dtype != np.uint64:
        why = f"{name} returns {words.dtype}, expected words: pack the signs, 64 in a uint64"
        raise Wrong(why, inputs, words.dtype, "uint64")
    if words.shape != wanted:
        raise Wrong(f"the words have shape {words.shape}, expected {wanted}: one row for each row "
                    "of the weight", inputs)  # fmt: skip
    return words


def _unpacked(words, k):
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[:, :k]
    return np.where(bits == 1, np.float32(1), np.float32(-1))


def _direction(zero):
    def signs(before, after, coin):
        change = after - before
        at_zero = coin if zero is None else zero
        return np.where(change == 0, at_zero, np.where(change > 0, 1, -1))

    return signs


_UPDATE_MISTAKES = {
    "this is the sign of the new weight; sent is the direction in which it moved, after - before":
        lambda before, after, coin: np.where(after >= 0, 1, -1),
    "the direction is reversed: an update is after - before": lambda before, after, coin:
        np.where(after == before, coin, np.where(after < before, 1, -1)),
    "a weight that has not changed counts as +1, so every such weight is pushed upwards; the coin "
    "decides there": _direction(1),
    "a weight that has not changed counts as -1 (pack asks whether a number is > 0), so every such "
    "weight is pushed downwards; the coin decides there": _direction(-1),
    "this is the coin alone; it decides only where a weight has not changed":
        lambda before, after, coin: coin,
    "sent is whether the sign has flipped; almost no sign flips in a round, so that says nothing":
        lambda before, after, coin: np.where((before >= 0) != (after >= 0), 1, -1),
    "where the weight has not changed, the opposite of the coin is sent":
        lambda before, after, coin: _direction(-coin)(before, after, coin),
}  # fmt: skip
_UPDATE = {
    "before": np.float32([[0.5, -0.25, 0.75, 0.0, -0.5, -1.0]]),
    "after": np.float32([[0.25, -0.125, 0.75, 0.0, 0.5, -1.0]]),
    "coin": np.float32([[1, -1, -1, 1, -1, 1]]),
}


def update_values(averaging: ModuleType) -> None:
    """each bit is the direction in which training moved the weight; the coin decides for none."""
    from hypothesis import strategies as st

    def update_bits(before, after, coin):
        words = averaging.update_bits(before, after, coin)
        inputs = {"before": before, "after": after, "coin": coin}
        return _unpacked(_words("update_bits", words, before.shape, inputs), before.shape[1])

    def check(rows, columns, seed):
        rng = np.random.default_rng(seed)
        before, after = rng.integers(-2, 3, (2, rows, columns)).astype(np.float32) / 2
        coin = rng.choice(np.float32([-1, 1]), before.shape)
        inputs = {"before": before, "after": after, "coin": coin}
        compare(update_bits, _direction(None), inputs, _UPDATE_MISTAKES, probes=[_UPDATE])

    with provided(averaging, pack=place):
        compare(update_bits, _direction(None), _UPDATE, _UPDATE_MISTAKES)
        columns = st.one_of(st.integers(1, 5), st.sampled_from([64, 70]))
        for_all(check, examples=100, rows=st.integers(1, 3), columns=columns,
                seed=st.integers(0, 99))  # fmt: skip


# ------------------------------------------------------------------------------------------- step


def _move(votes=lambda signs, counts: _sum(signs, counts) / sum(counts), clip=True):
    def moved(weight, messages, counts, step, limit):
        moved = weight + step * votes(messages, counts)
        return np.clip(moved, -limit, limit) if clip else moved

    return moved


_STEP_MISTAKES = {
    "the votes are not divided by the number of all samples, so the step is far too long":
        _move(_sum),
    "the votes are divided by the number of clients; divide by that of all samples":
        _move(lambda signs, counts: _sum(signs, counts) / len(counts)),
    "all clients count the same; weight each by its samples":
        _move(lambda signs, counts: np.mean(signs, axis=0)),
    "only the winner of the vote counts; a close vote must move the weight less than a clear one":
        (_move(lambda signs, counts: np.where(_sum(signs, counts) >= 0, 1, -1)),
         _move(lambda signs, counts: np.sign(_sum(signs, counts)))),
    "the step goes against the votes; a gradient is subtracted, an update is added":
        _move(lambda signs, counts: -_sum(signs, counts) / sum(counts)),
    "the new weight is not clipped to [-limit, limit]": _move(clip=False),
    "the argument `limit` is not used":
        lambda weight, messages, counts, step, limit: _move()(weight, messages, counts, step, 1.0),
    "the argument `step` is not used":
        lambda weight, messages, counts, step, limit:
            _move()(weight, messages, counts, 0.02, limit),
    "the old weight is forgotten: the server has only signs left, and nothing gathers small steps":
        (lambda weight, messages, counts, step, limit:
            np.clip(step * _sum(messages, counts) / sum(counts), -limit, limit),
         lambda weight, messages, counts, step, limit: _sum(messages, counts) / sum(counts)),
    "the old weight has become a sign; the server must keep the latent weight, which remembers "
    "small steps": lambda weight, messages, counts, step, limit:
        _move()(np.where(weight >= 0, 1, -1), messages, counts, step, limit),
}  # fmt: skip
_SIGNS = "messages, unpacked"  # as they are shown
_STEP = {
    "weight": np.float32([[0.25, -0.5, 0.375]]),
    _SIGNS: [np.float32([[1, 1, -1]]), np.float32([[1, -1, 1]]), np.float32([[1, -1, 1]])],
    "counts": [5, 1, 2],
    "step": 0.25,
    "limit": 0.5,
}


def _server_step(averaging):
    def server_step(weight, signs, counts, step, limit):
        messages = [place(s) for s in signs]
        return averaging.server_step(weight, messages, counts, step, limit)

    return server_step


def step_values(averaging: ModuleType) -> None:
    """the weight moves by the mean of the votes times the step, and is clipped."""
    from hypothesis import strategies as st

    function, reference = _server_step(averaging), _move()

    def check(counts, columns, step, limit, seed):
        rng = np.random.default_rng(seed)
        signs = list(rng.choice(np.float32([-1, 1]), (len(counts), 2, columns)))
        weight = (limit * rng.integers(-4, 5, (2, columns)) / 4).astype(np.float32)
        inputs = {"weight": weight, _SIGNS: signs, "counts": counts, "step": step, "limit": limit}
        compare(function, reference, inputs, _STEP_MISTAKES, _TOLERANCE, [_STEP])

    with provided(averaging, weighted_mean=_mean, unpack=_unpacked):
        compare(function, reference, _STEP, _STEP_MISTAKES, _TOLERANCE)
        _is_float32("server_step", call(function, _STEP), _STEP)
        for_all(
            check, examples=100, counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
            columns=st.sampled_from([1, 3, 70]), step=st.sampled_from([0.02, 0.5]),
            limit=st.sampled_from([1.0, 2.0]), seed=st.integers(0, 99),
        )  # fmt: skip


def step_flips(averaging: ModuleType) -> None:
    """with the defaults, small votes add up over rounds until a sign flips."""
    up, down = place(np.float32([[1, -1]])), place(np.float32([[-1, -1]]))
    with provided(averaging, weighted_mean=_mean, unpack=_unpacked):
        weight = np.float32([[-0.05, 0.99]])
        for _ in range(6):
            inputs = {"weight": weight, "messages": [up, down], "counts": [3, 1]}
            weight = np.asarray(call(averaging.server_step, inputs))
    wanted = np.float32([[-0.05 + 6 * 0.02 / 2, 0.99 - 6 * 0.02]])
    if not np.allclose(weight, wanted, atol=1e-5):
        inputs = {"weight": np.float32([[-0.05, 0.99]]), "rounds": 6, "counts": [3, 1]}
        why = (
            "after six rounds with the default step of 0.02 and limit of 1 the weight is not there"
        )
        raise Wrong(why, inputs, weight, wanted)


# ------------------------------------------------------------------------------- stochastic signs


_EXPECTED_MISTAKES = {
    "the probability of +1 is the weight itself here; a weight of 0 must give +1 half of the time: "
    "(1 + w) / 2": lambda weight: np.float64(2 * max(weight, 0) - 1),
    "the probability of +1 is |w| here; it is (1 + w) / 2":
        lambda weight: np.float64(2 * abs(weight) - 1),
    "the expectation is minus the weight: +1 where the random number is below (1 + w) / 2":
        lambda weight: np.float64(-weight),
    "this is the sign of the weight, without chance; its expectation is not the weight":
        lambda weight: np.float64(1 if weight >= 0 else -1),
    "the signs are 1 and 0 here; they must be +1 and -1":
        lambda weight: np.float64((1 + weight) / 2),
    "the random number is compared with the weight as if it were uniform in [-1, 1]; it is in "
    "[0, 1), so compare with (1 + w) / 2": lambda weight: np.float64(2 * min(weight, 1) - 1),
    "the sign is a fair coin here, whatever the weight": lambda weight: np.float64(0),
    "each half of the interval is taken twice: the probability is 1 + w; halve it":
        lambda weight: np.float64(2 * min(1 + weight, 1) - 1),
    "the probability of +1 is w / 2 here; it is (1 + w) / 2":
        lambda weight: np.float64(max(weight, 0) - 1),
}  # fmt: skip


def stochastic_mean(averaging: ModuleType) -> None:
    """over 1,000 evenly spaced random numbers, the mean of the signs is the weight."""
    uniform = (np.arange(_STEPS) + 0.5) / _STEPS

    def mean_of_stochastic_sign(weight):
        signs = averaging.stochastic_sign(np.full(_STEPS, weight, np.float32), uniform)
        if signs is None:
            raise Wrong("stochastic_sign returns None: is a return missing?")
        return np.asarray(signs, np.float64).mean()

    probes = [{"weight": weight} for weight in (0.5, -0.5, 0.0, 0.75, -1.0, 1.0)]
    for inputs in probes:
        compare(mean_of_stochastic_sign, np.float64, inputs, _EXPECTED_MISTAKES, 2 / _STEPS, probes)


def stochastic_form(averaging: ModuleType) -> None:
    """every weight has its own random number, and the answer is float32 of +1 and -1."""
    inputs = {
        "weight": np.float32([[0.0, 0.0, 0.0], [0.5, -0.5, 1.0]]),
        "uniform": np.array([[0.1, 0.9, 0.6], [0.05, 0.95, 0.5]]),
    }
    low = call(averaging.stochastic_sign, inputs)
    _is_float32("stochastic_sign", low, inputs)
    wanted = np.float32([[1, -1, -1], [1, -1, 1]])
    # 1 - uniform is as random: +1 may belong to the small numbers or to the large ones
    other = inputs | {"uniform": 1 - inputs["uniform"]}
    high = call(averaging.stochastic_sign, other)
    if not (np.array_equal(low, wanted) or np.array_equal(high, wanted)):
        why = "a sign must depend on its own weight and its own random number, and on nothing else"
        raise Wrong(why, inputs, low, wanted)


# ------------------------------------------------------------------------------------------ bytes


def _bytes(row_bytes=lambda k: -(-k // 8), vector=lambda n: 4 * n):
    def count(shapes, one_bit):
        return sum(
            shape[0] * row_bytes(math.prod(shape[1:])) if one_bit and len(shape) > 1
            else vector(math.prod(shape))
            for shape in shapes
        )  # fmt: skip

    return count


def _weights(shapes, one_bit):
    return _bytes()([s for s in shapes if len(s) > 1], one_bit)


_BYTES_MISTAKES = {
    "the bits of all rows run on; each row begins with a new byte, ceil(K / 8) of them":
        lambda shapes, one_bit: sum(
            -(-math.prod(s) // 8) if one_bit and len(s) > 1 else 4 * math.prod(s) for s in shapes),
    "the last bits of a row are lost: 9 signs need 2 bytes, so round up": _bytes(lambda k: k // 8),
    "these are bits; a byte holds 8 of them": _bytes(lambda k: k),
    "each row is rounded up to whole words of 64; on the wire it fills whole bytes":
        _bytes(lambda k: 8 * -(-k // 64)),
    "these are words; asked for are bytes": _bytes(lambda k: -(-k // 64)),
    "every array counts as float32, 4 bytes a number; a weight travels as bits":
        lambda shapes, one_bit: _bytes()(shapes, False),
    "weights travel as bits even where one_bit is False": lambda shapes, one_bit:
        _bytes()(shapes, True),
    "arrays with one axis count as bits as well; they always travel as float32":
        lambda shapes, one_bit: _weights(shapes, one_bit) + sum(
            -(-s[0] // 8) if one_bit else 4 * s[0] for s in shapes if len(s) == 1),
    "arrays with one axis are missing": lambda shapes, one_bit: _weights(shapes, one_bit),
    "a float32 has 4 bytes, not 8": _bytes(vector=lambda n: 8 * n),
    "a row is taken to end with the second axis; it is all that lies below one index of the first":
        lambda shapes, one_bit: _bytes()([s[:2] for s in shapes], one_bit),
}  # fmt: skip
_BYTES = [
    {"shapes": [(3, 9), (3,)], "one_bit": True},
    {"shapes": [(2, 70), (5, 3, 3, 3), (7,)], "one_bit": True},
    {"shapes": [(2, 70), (5, 3, 3, 3), (7,)], "one_bit": False},
]


def bytes_values(averaging: ModuleType) -> None:
    """rows of bits fill whole bytes, and arrays with one axis stay float32."""
    from hypothesis import strategies as st

    def check(shapes, one_bit):
        inputs = {"shapes": shapes, "one_bit": one_bit}
        compare(averaging.message_bytes, _bytes(), inputs, _BYTES_MISTAKES, probes=_BYTES)

    for inputs in _BYTES:
        check(**inputs)
    shapes = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple), max_size=3)
    for_all(check, examples=100, shapes=shapes, one_bit=st.booleans())


def bytes_are_an_int(averaging: ModuleType) -> None:
    """the number of bytes is an int, and one_bit is the default."""
    inputs: dict[str, Any] = {"shapes": [(3, 9), (3,)]}
    answer = call(averaging.message_bytes, inputs)
    if not isinstance(answer, int | np.integer):
        raise Wrong(f"the answer is a {type(answer).__name__}, expected an int", inputs, answer, 18)
    if answer != 18:
        raise Wrong("one_bit must be True unless it is given", inputs, answer, 18)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "09.1",
        "weighted_mean",
        "Federated averaging: the mean of the clients' weights, weighted by samples.",
        "The naive version: average the weights",
        (mean_values, mean_changes_nothing, mean_rounds_once),
        (
            "One client has 3 samples, another has 1. Which weights would one machine with all "
            "four samples listen to more?",
            "Multiply each array by its count, add, and divide by the number of all samples.",
            "zip(counts, arrays) goes through both; a.astype(np.float64) before the product, and "
            ".astype(np.float32) on the quotient.",
        ),
    ),
    Exercise(
        "09.2",
        "majority_vote",
        "The sign that most samples are for; a tie keeps the old one.",
        "The vote that freezes",
        (vote_values,),
        (
            "Count +1 as a vote for, -1 as a vote against, n_k times. What does a sum of 0 mean?",
            "The sum of counts times signs is positive, negative or 0: three cases.",
            "np.where in np.where: where the sum is 0 take `before`, elsewhere +1 or -1 by its "
            "sign. Mind the dtype.",
        ),
    ),
    Exercise(
        "09.3",
        "update_bits",
        "The direction in which training moved each weight, packed.",
        "The vote that learns",
        (update_values,),
        (
            "A weight went from 0.5 to 0.25: it is still +1. Which bit is sent?",
            "Compare `after` with `before`, not with 0. What about weights that are equal?",
            "np.where(after == before, coin, ...) makes the signs; `pack` of chapter 04 makes "
            "words of them.",
        ),
    ),
    Exercise(
        "09.4",
        "server_step",
        "The server's step in the direction of the votes.",
        "The vote that learns",
        (step_values, step_flips),
        (
            "Three clients say up and one says down, with equal samples. By how much of `step` "
            "does the weight move?",
            "The mean of the signs, weighted by samples, lies between -1 and 1: that times `step`.",
            "unpack(words, weight.shape[1]) gives a client's signs, weighted_mean the direction; "
            "add it to the weight, and np.clip at the end.",
        ),
    ),
    Exercise(
        "09.5",
        "stochastic_sign",
        "A random sign whose expectation is the weight.",
        "A random bit with the right mean",
        (stochastic_mean, stochastic_form),
        (
            "If +1 comes with probability p, and -1 else, what is the expectation?",
            "It is p - (1 - p). Set this equal to w and solve for p.",
            "A uniform number is below p with probability p; np.where makes +1 and -1 of that.",
        ),
    ),
    Exercise(
        "09.6",
        "message_bytes",
        "The bytes of a message, weights as bits or as floats.",
        "Bytes on the wire",
        (bytes_values, bytes_are_an_int),
        (
            "How many bytes do 9 signs need? And three rows of 9 signs, each beginning with a new "
            "byte?",
            "Treat each shape alone: one axis or one_bit False, 4 bytes a number; else rows times "
            "bytes of a row.",
            "math.prod(shape[1:]) is the length K of a row, also where there is more than one axis "
            "below; -(-K // 8) rounds up.",
        ),
    ),
)
