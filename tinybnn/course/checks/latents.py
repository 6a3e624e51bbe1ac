"""Chapter 07: drawn bits, the exact gradient, two estimators of it, and the distance from coins."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from tinybnn.course.checks.engine import Formula
from tinybnn.course.checks.estimators import computed, engine
from tinybnn.course.exercise import Exercise, Wrong, call, compare, equal, for_all
from tinybnn.typing import Array

_TOLERANCE = 1e-9
_MEASURED = 1e-6  # also finite differences are an exact gradient


def _sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _codes(bits):
    return np.where((np.arange(2**bits)[:, None] >> np.arange(bits)) & 1, 1.0, -1.0)


def _probabilities(logits, codes):
    return _sigmoid(codes * logits).prod(axis=-1)


def _signs(bools, like):
    return np.where(bools, 1, -1).astype(like.dtype)


# -------------------------------------------------------------------------------------------- bits


def _sample(p, uniform):
    return _signs(uniform < p, p)


_SAMPLE_MISTAKES = {
    "a bit of probability 0 becomes +1 where uniform is 0: compare with <, since uniform < p "
    "happens with probability p exactly": lambda p, uniform: _signs(uniform <= p, p),
    "+1 and -1 are exchanged: p is the probability of +1, and uniform < p happens with probability "
    "p": (lambda p, uniform: _signs(uniform >= p, p), lambda p, uniform: _signs(uniform > p, p)),
    "the bits are 1 and 0 here; a latent bit is +1 or -1": lambda p, uniform: uniform < p,
    "uniform is not used: each bit takes its likelier value. A drawn bit is sometimes the other "
    "one": (lambda p, uniform: _signs(p >= 0.5, p), lambda p, uniform: _signs(p > 0.5, p)),
    "np.sign gives 0 where uniform equals p; a bit is never 0":
        (lambda p, uniform: np.sign(p - uniform), lambda p, uniform: np.sign(uniform - p)),
    "this is the mean of a bit, 2 p - 1; asked for is a drawn bit": lambda p, uniform: 2 * p - 1,
    "the probability passes the sigmoid once more; p is a probability already":
        lambda p, uniform: _signs(uniform < _sigmoid(p), p),
}  # fmt: skip
_DRAWN = [
    {"p": np.float64([0, 0.25, 0.5, 0.75, 1, 0.375]),
     "uniform": np.float64([0, 0.25, 0.625, 0.125, 0.96875, 0.75])},
    {"p": np.float64([[0.125, 0.875]]), "uniform": np.float64([[0.5, 0.5]])},
    {"p": np.float64([0.375, 0.125, 0.625]), "uniform": np.float64([0.25, 0.0625, 0.6875])},
]  # fmt: skip


def bits_given(latents: ModuleType) -> None:
    """sample_bits uses the given random numbers and draws none of its own."""
    inputs = {"p": np.full(64, 0.5), "uniform": np.linspace(0, 0.984375, 64)}
    first, second = (call(latents.sample_bits, inputs) for _ in range(2))
    if not equal(first, second):
        raise Wrong(
            "two calls with the same arguments differ: the function draws random numbers of its "
            "own; use `uniform`, so that a draw can be repeated",
            {"p": "64 times 0.5", "uniform": "0 to 1"},
        )  # fmt: skip


def bits_values(latents: ModuleType) -> None:
    """sample_bits is +1 exactly where uniform < p, at the ends 0 and 1 too."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    def check(p, uniform):
        inputs = {"p": p, "uniform": uniform}
        compare(latents.sample_bits, _sample, inputs, _SAMPLE_MISTAKES, probes=_DRAWN)

    for inputs in _DRAWN:
        check(**inputs)
    eighths = st.integers(0, 8).map(lambda i: i / 8)
    for_all(
        check, p=arrays(np.float64, 4, elements=eighths),
        uniform=arrays(np.float64, 4, elements=eighths.filter(lambda u: u < 1)),
    )  # fmt: skip


def bits_dtype(latents: ModuleType) -> None:
    """float32 stays float32 and float64 stays float64."""
    for dtype in (np.float32, np.float64):
        inputs = {"p": np.array([0.25, 0.75], dtype), "uniform": np.array([0.5, 0.5], dtype)}
        got = np.asarray(call(latents.sample_bits, inputs)).dtype
        if got != dtype:
            text = f"sample_bits turns {dtype.__name__} into {got}; convert with .astype(p.dtype)"
            raise Wrong(text, inputs, got, np.dtype(dtype))


# ---------------------------------------------------------------------------------- exact gradient


def _exact(logits, cost):
    """p (1 - p) times the difference of two conditional means, for each bit."""
    codes = _codes(len(logits))
    q, costs, p = _probabilities(logits, codes), cost(codes), _sigmoid(logits)
    return np.array([
        p[i] * (1 - p[i]) * (_given(q, costs, codes[:, i] > 0) - _given(q, costs, codes[:, i] < 0))
        for i in range(len(logits))
    ])  # fmt: skip


def _given(q, costs, rows):
    return (q * costs)[rows].sum() / q[rows].sum()


def _sum(terms):
    """Make a mistaken gradient: the sum over all codes of terms (codes, p, q, costs)."""

    def mistaken(logits, cost):
        codes = _codes(len(logits))
        q = _probabilities(logits, codes)
        return terms(codes, _sigmoid(logits), q, cost(codes)).sum(axis=0)

    return mistaken


_EXACT_MISTAKES = {
    "all codes count alike: each code must be weighted with its probability":
        (_sum(lambda z, p, q, c: c[:, None] * (z - (2 * p - 1)) / 2),
         _sum(lambda z, p, q, c: c[:, None] * (z - (2 * p - 1)) / 2 / len(z))),
    "the factor 1/2 is missing: the derivative of ln q(z) in a logit is (z - E[z]) / 2":
        _sum(lambda z, p, q, c: (q * c)[:, None] * (z - (2 * p - 1))),
    "the mean of the bit is not subtracted: the derivative of ln q(z) is (z - E[z]) / 2, with "
    "E[z] = 2 sigmoid(l) - 1": _sum(lambda z, p, q, c: (q * c)[:, None] * z / 2),
    "sigmoid(l) is the mean of bits 0 and 1; that of bits -1 and +1 is 2 sigmoid(l) - 1":
        _sum(lambda z, p, q, c: (q * c)[:, None] * (z - p) / 2),
    "this is the derivative in the probability p; in the logit it has the factor p (1 - p) more":
        lambda logits, cost: _exact(logits, cost) / (_sigmoid(logits) * _sigmoid(-logits)),
    "divided by the number of codes; the probabilities add up to 1 already":
        lambda logits, cost: _exact(logits, cost) / 2 ** len(logits),
    "the sign is the other one: a gradient points to where the expected cost rises":
        lambda logits, cost: -_exact(logits, cost),
    "the cost is forgotten: the derivatives of the probabilities alone add up to 0":
        _sum(lambda z, p, q, c: q[:, None] * (z - (2 * p - 1)) / 2),
}  # fmt: skip
_COSTS = (
    Formula("sum of (z - 0.4)**4", lambda codes: ((codes - 0.4) ** 4).sum(axis=-1)),
    Formula("3 z[0] - z[-1]", lambda codes: 3 * codes[..., 0] - codes[..., -1]),
    Formula("1 + 2 product of z", lambda codes: 1 + 2 * codes.prod(axis=-1)),
)
_GRADIENTS = [
    {"logits": np.float64([0.5, -1, 2]), "cost": _COSTS[0]},
    {"logits": np.float64([1, -0.25]), "cost": _COSTS[1]},
    {"logits": np.float64([-0.75, 0.5]), "cost": _COSTS[2]},
]


def exact_one_bit(latents: ModuleType) -> None:
    """for one bit the exact gradient is p (1 - p) (cost(+1) - cost(-1))."""
    for logit in (0.0, 0.7, -2.0):
        inputs = {"logits": np.array([logit]), "cost": _COSTS[0]}
        compare(
            latents.exact_gradient, _exact, inputs, _EXACT_MISTAKES, _MEASURED, probes=_GRADIENTS
        )


def exact_any(latents: ModuleType) -> None:
    """the exact gradient is right for one to five bits and costs in which bits act together."""
    from hypothesis import strategies as st

    def check(logits, cost):
        inputs = {"logits": np.float64(logits), "cost": cost}
        compare(
            latents.exact_gradient, _exact, inputs, _EXACT_MISTAKES, _MEASURED, probes=_GRADIENTS
        )

    for inputs in _GRADIENTS:
        check(**inputs)
    small = st.integers(-12, 12).map(lambda i: i / 4)
    logits = st.lists(small, min_size=1, max_size=5)
    for_all(check, 60, logits=logits, cost=st.sampled_from(_COSTS))


# ---------------------------------------------------------------------------------- score function


def _score(logits, codes, costs, baseline=0.0):
    return (costs - baseline)[:, None] * (codes - (2 * _sigmoid(logits) - 1)) / 2


_SCORE_MISTAKES = {
    "the mean over the codes is taken already: return one estimate a row, (M, bits)":
        lambda *inputs: _score(*inputs).mean(axis=0),
    "the factor 1/2 is missing: the derivative of ln q(z) in a logit is (z - E[z]) / 2":
        lambda *inputs: 2 * _score(*inputs),
    "the mean of the bit is not subtracted: the derivative of ln q(z) is (z - E[z]) / 2, with "
    "E[z] = 2 sigmoid(l) - 1":
        lambda logits, codes, costs, baseline: (costs - baseline)[:, None] * codes / 2,
    "sigmoid(l) is the mean of bits 0 and 1; that of bits -1 and +1 is 2 sigmoid(l) - 1":
        (lambda logits, codes, costs, baseline:
            (costs - baseline)[:, None] * (codes - _sigmoid(logits)) / 2,
         lambda logits, codes, costs, baseline:
            (costs - baseline)[:, None] * (codes - _sigmoid(logits))),
    "the baseline is not used: it is subtracted from each cost":
        lambda logits, codes, costs, baseline: _score(logits, codes, costs),
    "the baseline is added; subtract it from each cost":
        lambda logits, codes, costs, baseline: _score(logits, codes, costs, -baseline),
    "the baseline is subtracted from the product; it belongs to the cost, where it changes no "
    "average": lambda logits, codes, costs, baseline: _score(logits, codes, costs) - baseline,
    "the costs are forgotten: this is the derivative of ln q(z) alone":
        lambda logits, codes, costs, baseline: _score(logits, codes, np.ones(len(codes))),
    "each code is weighted with its probability; drawn codes come as often as they are likely, so "
    "the weight would count twice": lambda logits, codes, costs, baseline:
        _probabilities(logits, codes)[:, None] * _score(logits, codes, costs, baseline),
    "this is the derivative in the probability p; in the logit it has the factor p (1 - p) more":
        lambda logits, *more:
            _score(logits, *more) / (_sigmoid(logits) * _sigmoid(-logits)),
}  # fmt: skip
_SCORES = [
    {"logits": np.float64([0.5, -1]), "codes": _codes(2)[[3, 1, 2]],
     "costs": np.float64([2, -1, 0.5]), "baseline": 0.75},
    {"logits": np.float64([-0.25]), "codes": np.float64([[1], [-1]]),
     "costs": np.float64([3, 1]), "baseline": 0.5},
]  # fmt: skip


def score_values(latents: ModuleType) -> None:
    """score_function is (cost - baseline) times the derivative of ln q(z), a row for each code."""
    for inputs in _SCORES:
        compare(latents.score_function, _score, inputs, _SCORE_MISTAKES, _TOLERANCE, probes=_SCORES)


def score_default(latents: ModuleType) -> None:
    """without a baseline nothing is subtracted."""
    inputs = {name: value for name, value in _SCORES[0].items() if name != "baseline"}
    text = "without a baseline the cost itself is the factor: the default is 0"
    compare(
        latents.score_function, _score, inputs,
        {text: lambda logits, codes, costs: _score(logits, codes, costs, costs.mean())}, _TOLERANCE,
    )  # fmt: skip


def score_unbiased(latents: ModuleType) -> None:
    """weighted with the probabilities of all codes, the estimates add up to the exact gradient."""
    from hypothesis import strategies as st

    def check(logits, cost, baseline):
        logits = np.float64(logits)
        codes = _codes(len(logits))
        inputs = {"logits": logits, "codes": codes, "costs": cost(codes), "baseline": baseline}
        got = _probabilities(logits, codes) @ np.asarray(call(latents.score_function, inputs))
        if not equal(got, wanted := _exact(logits, cost), _MEASURED):
            raise Wrong(
                "the estimator is biased: weighted with the probabilities of all codes, its rows "
                "do not add up to the exact gradient",
                {"logits": logits, "cost": cost, "baseline": baseline}, got, wanted,
            )  # fmt: skip

    small = st.integers(-8, 8).map(lambda i: i / 4)
    for_all(
        check, 60, logits=st.lists(small, min_size=1, max_size=4), cost=st.sampled_from(_COSTS),
        baseline=small,
    )  # fmt: skip


# -------------------------------------------------------------------------------- straight through


def _bits(latents, logits, uniform):
    """Call the student's straight_through of a Tensor, whose data it must not change."""
    tensor = engine(latents).Tensor
    given = tensor(logits.copy())
    try:
        result = latents.straight_through(given, uniform)
    except TypeError as error:
        if "'Tensor' object is not iterable" in str(error):
            raise Wrong("parents is a tuple, also of one: (logits,)", cause=error) from error
        raise
    computed("straight_through", result, tensor)
    if not equal(given.data, logits):
        raise Wrong(
            "straight_through writes into logits.data; make a new array", {"logits": logits}
        )
    return given, result


def _forward(logits, uniform):
    return _signs(uniform < _sigmoid(logits), logits)


_FORWARD_MISTAKES = {
    "the forward pass computes the mean of the bit, 2 sigmoid(l) - 1; it must draw: only the "
    "gradient is that of the mean": lambda logits, uniform: 2 * _sigmoid(logits) - 1,
    "uniform is not used: each bit takes its likelier value; draw it with sample_bits":
        lambda logits, uniform: _signs(logits >= 0, logits),
    "the logit is compared with uniform; the probability is sigmoid(logit)":
        lambda logits, uniform: _signs(uniform < logits, logits),
    "+1 and -1 are exchanged: sigmoid(l) is the probability of +1":
        lambda logits, uniform: -_forward(logits, uniform),
    "the bits are 1 and 0 here; a latent bit is +1 or -1":
        lambda logits, uniform: uniform < _sigmoid(logits),
}  # fmt: skip
_THROUGH = [
    {"logits": np.float64([-2, -0.5, 0.25, 0.5, 3, 1.5]),
     "uniform": np.float64([0.0625, 0.75, 0.5, 0.6875, 0.25, 0.96875])},
    {"logits": np.float64([[0.75, -0.25], [-1.5, 1.25]]),
     "uniform": np.float64([[0.125, 0.375], [0.5, 0.9375]])},
]  # fmt: skip


def through_forward(latents: ModuleType) -> None:
    """the forward pass draws bits of probability sigmoid(logits), with the given numbers."""

    def straight_through(logits, uniform):
        return _bits(latents, logits, uniform)[1].data

    for inputs in _THROUGH:
        compare(straight_through, _forward, inputs, _FORWARD_MISTAKES, probes=_THROUGH)


def _slope(logits):
    return 2 * _sigmoid(logits) * _sigmoid(-logits)


_SLOPE_MISTAKES = {
    "the incoming gradient is forgotten: the rule must return grad times the slope":
        lambda logits, uniform, grad: _slope(logits),
    "the incoming gradient passes unchanged; multiply it with the slope of 2 sigmoid(l) - 1":
        lambda logits, uniform, grad: grad,
    "the factor 2 is missing: the mean of a bit is 2 sigmoid(l) - 1, and its slope 2 p (1 - p)":
        lambda logits, uniform, grad: grad * _slope(logits) / 2,
    "this is the slope of the clipped line, as for a sign without noise; a drawn bit has the mean "
    "2 sigmoid(l) - 1": lambda logits, uniform, grad: grad * (np.abs(logits) <= 1),
    "the slope is taken at the drawn bits; it is that of the mean at the logits":
        lambda logits, uniform, grad: grad * _slope(_forward(logits, uniform)),
    "this is the mean in place of its slope":
        lambda logits, uniform, grad: grad * (2 * _sigmoid(logits) - 1),
    "this is the true derivative of a drawn bit, which is 0":
        lambda logits, uniform, grad: 0 * grad,
    "there is a factor too many: the bit itself":
        lambda logits, uniform, grad: grad * _slope(logits) * _forward(logits, uniform),
}  # fmt: skip


def _rule(latents, logits, uniform, grad):
    """The gradient that the student's rule returns."""
    given, result = _bits(latents, logits, uniform)
    if len(result.parents) != 1 or result.parents[0] is not given or result.rule is None:
        raise Wrong(
            "the result does not remember what it was computed from: return "
            "Tensor(bits, (logits,), rule), where logits is the Tensor"
        )
    before = grad.copy()
    answer = result.rule(grad)
    if not equal(grad, before):
        raise Wrong("the rule writes into grad; make a new array", {"grad": before})
    if not isinstance(answer, tuple | list) or len(answer) != 1:
        text = "the rule must return a tuple with one array, for the one parent: (array,)"
        raise Wrong(text, {"grad": grad}, answer)
    return np.asarray(answer[0])


def through_rule(latents: ModuleType) -> None:
    """the rule returns the incoming gradient times the slope of the bits' mean."""

    def straight_through(logits, uniform, grad):
        return _rule(latents, logits, uniform, grad)

    inputs = [one | {"grad": _incoming(one["logits"])} for one in _THROUGH]
    for one in inputs:
        compare(
            straight_through, lambda logits, uniform, grad: grad * _slope(logits), one,
            _SLOPE_MISTAKES, _TOLERANCE, probes=inputs,
        )  # fmt: skip


def _incoming(x):
    return np.arange(2, x.size + 2, dtype=x.dtype).reshape(x.shape)


def through_linear_cost(latents: ModuleType) -> None:
    """for a linear cost, and for no other, its average over all codes is the exact gradient."""
    logits, factors = np.float64([0.5, -1.25, 2]), np.float64([3, -1, 0.5])
    codes, p = _codes(3), _sigmoid(logits)
    uniform = np.where(codes > 0, p / 2, (1 + p) / 2)  # these numbers draw the code

    def mean(gradient: Any) -> Array:
        rows = [_rule(latents, logits, u, gradient(z)) for u, z in zip(uniform, codes, strict=True)]
        return _probabilities(logits, codes) @ np.array(rows)

    got, wanted = mean(lambda z: factors), _exact(logits, lambda z: z @ factors)
    if not equal(got, wanted, _TOLERANCE):
        raise Wrong(
            "the average over all codes is not the exact gradient, though the cost is linear",
            {"logits": logits, "cost": Formula("3 z[0] - z[1] + 0.5 z[2]", None)}, got, wanted,
        )  # fmt: skip


def through_dtype(latents: ModuleType) -> None:
    """float32 stays float32 and float64 stays float64, forward and in the rule."""
    for dtype in (np.float32, np.float64):
        logits, uniform = np.array([-1.5, 0.25], dtype), np.array([0.5, 0.5])
        bits = _bits(latents, logits, uniform)[1].dtype
        slopes = _rule(latents, logits, uniform, np.ones(2, dtype)).dtype
        for what, got in (("the bits", bits), ("the rule's answer", slopes)):
            if got != dtype:
                raise Wrong(
                    f"of {dtype.__name__} logits {what} become {got}; convert with "
                    ".astype(logits.dtype): a Tensor makes float32 of integers",
                    {"logits": logits}, got, np.dtype(dtype),
                )  # fmt: skip


# ----------------------------------------------------------------------------- distance from coins


def _kl_of_bits(logits):
    size = np.abs(logits)
    small = np.exp(-size)
    return np.log(2) - np.log1p(small) - size * small / (1 + small)


def _kl(logits):
    return _kl_of_bits(logits).sum(axis=-1)


def _clipped(eps):
    def mistaken(logits):
        p = np.clip(_sigmoid(logits), eps, 1 - eps)
        return (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))).sum(axis=-1)

    return mistaken


def _first_term(logits):
    p = _sigmoid(logits)
    return (p * np.log(2 * p)).sum(axis=-1)


_KL_MISTAKES = {
    "this is in bits; in nats it is ln 2 times as much, with np.log instead of np.log2":
        lambda logits: _kl(logits) / np.log(2),
    "this is the entropy, largest for a fair coin; the distance from a coin is ln 2 minus it, for "
    "each bit": lambda logits: (np.log(2) - _kl_of_bits(logits)).sum(axis=-1),
    "ln 2 of each bit is missing: compare with a coin, ln(2 p) and not ln(p)":
        lambda logits: (_kl_of_bits(logits) - np.log(2)).sum(axis=-1),
    "the sign is the other one: a KL divergence is never negative": lambda logits: -_kl(logits),
    "the term of -1 is missing: (1 - p) ln(2 (1 - p))": _first_term,
    "the mean over the bits is taken; their distances add up":
        lambda logits: _kl_of_bits(logits).mean(axis=-1),
    "the bits are not added up: the sum runs over the last axis": _kl_of_bits,
    "all rows are added up; each code has its own number, so sum over the last axis":
        lambda logits: _kl(logits).sum(),
    "the logits are taken for probabilities; p is sigmoid(l)": lambda logits:
        (logits * np.log(2 * logits) + (1 - logits) * np.log(2 * (1 - logits))).sum(axis=-1),
    "a probability is clipped: that moves every bit that is nearly certain. Compute with "
    "exp(-|l|), which is exact there": tuple(_clipped(10.0**-n) for n in range(3, 16)),
    "a term is added inside the logarithm, which moves the answer; compute with exp(-|l|)": tuple(
        lambda logits, eps=10.0**-n: (
            _sigmoid(logits) * np.log(2 * _sigmoid(logits) + eps)
            + _sigmoid(-logits) * np.log(2 * _sigmoid(-logits) + eps)
        ).sum(axis=-1)
        for n in range(3, 13)
    ),
}  # fmt: skip
_LOGITS = [{"logits": np.float64(x)} for x in ([[0.5, -1, 2], [3, 0.25, 0]], [0.75, 0.125], [[8]])]


def kl_values(latents: ModuleType) -> None:
    """kl_to_coin adds up the bits' distances from a fair coin, in nats."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    def check(logits):
        inputs = {"logits": logits}
        compare(latents.kl_to_coin, _kl, inputs, _KL_MISTAKES, _TOLERANCE, probes=_LOGITS)

    for inputs in _LOGITS:
        check(**inputs)
    small = st.integers(-40, 40).map(lambda i: i / 8)
    for_all(check, 60, logits=arrays(np.float64, (2, 3), elements=small))


def kl_ends(latents: ModuleType) -> None:
    """for logits of -1000 to 1000 kl_to_coin gives ln 2 without a warning."""
    for logit in (20.0, -20.0, 40.0, -40.0, 800.0, -800.0, 1000.0, -1000.0):
        inputs = {"logits": np.array([logit])}
        try:
            with np.errstate(divide="raise", over="raise", invalid="raise"):
                compare(latents.kl_to_coin, _kl, inputs, _KL_MISTAKES, _TOLERANCE)
        except Wrong as wrong:
            if isinstance(wrong.cause, FloatingPointError):
                raise Wrong(
                    "exp overflows or a logarithm gets 0 where a bit is certain: with "
                    "exp(-|l|), never above 1, and np.log1p both cannot happen",
                    inputs, f"a warning: {wrong.cause}", _kl(inputs["logits"]),
                ) from wrong  # fmt: skip
            raise


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "07.1",
        "sample_bits",
        "Bits +1 and -1 of given probabilities, drawn with given random numbers.",
        "The question",
        (bits_given, bits_values, bits_dtype),
        (
            "A random number between 0 and 1 is below 0.3 with which probability?",
            "Compare uniform with p, element by element. What must happen at p = 0 and p = 1?",
            "np.where makes +1 and -1 of the comparison uniform < p; then .astype(p.dtype).",
        ),
    ),
    Exercise(
        "07.2",
        "exact_gradient",
        "The gradient of the expected cost of few bits, by a sum over all codes.",
        "A check: all codes",
        (exact_one_bit, exact_any),
        (
            "The cost of a code does not depend on the logits; its probability does.",
            "The derivative of q(z) is q(z) times the derivative of ln q(z), and in logit i that "
            "is (z[i] - E[z[i]]) / 2, where E[z[i]] = 2 sigmoid(l[i]) - 1.",
            "Weights are code_probabilities times cost(codes), one for each code. Multiply with "
            "the (2**bits, bits) derivatives of ln q and sum over the codes; @ does both.",
        ),
    ),
    Exercise(
        "07.3",
        "score_function",
        "The score-function estimate of that gradient from each drawn code alone.",
        "Around the code",
        (score_values, score_default, score_unbiased),
        (
            "What is left of the sum over all codes if a code is drawn as often as it is likely?",
            "The probability is gone: the cost times the derivative of ln q(z) remains.",
            "(costs - baseline)[:, None] has a row for each code; the other factor is half of "
            "codes minus their mean, 2 sigmoid(logits) - 1.",
        ),
    ),
    Exercise(
        "07.4",
        "straight_through",
        "Drawn bits as an operation of your engine, with the gradient of their mean.",
        "Through the code",
        (through_forward, through_rule, through_linear_cost, through_dtype),
        (
            "Look at sign_ste of 02.4: data by one function, the rule by the slope of another.",
            "Forward: sample_bits with p = sigmoid(logits.data). The mean is 2 p - 1; what is its "
            "slope in the logit, if that of p is p (1 - p)?",
            "Return Tensor(bits, (logits,), rule); the rule returns (grad times 2 p (1 - p),). "
            "Mind the dtype: p of float32 logits may be float64.",
        ),
    ),
    Exercise(
        "07.5",
        "kl_to_coin",
        "KL divergence of the bits from fair coins in nats, for logits of any size.",
        "The price of a code",
        (kl_values, kl_ends),
        (
            "Which values have l and -l? So |l| is enough, and exp(-|l|) never overflows.",
            "With e = exp(-|l|) the likelier value has p = 1 / (1 + e), so ln p = -log1p(e), and "
            "the other one has 1 - p = e / (1 + e).",
            "ln(1 - p) = -|l| - log1p(e). Put both in ln 2 + p ln p + (1 - p) ln(1 - p): log1p(e) "
            "has the factor p + (1 - p) = 1, and no logarithm ever gets 0.",
        ),
    ),
)
