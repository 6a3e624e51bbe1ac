"""Chapter 06: batch norm and sign as one integer comparison, and a whole network on words."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all
from tinybnn.typing import Array

_EPS = 1e-5


def _normalized(a, mean, var, gamma, beta, eps=_EPS):
    a = np.asarray(a, np.float32)
    return (a - mean) / np.sqrt(var + np.float32(eps)) * gamma + beta


def _other_order(a, mean, var, gamma, beta, eps=_EPS):
    scale = gamma / np.sqrt(var + np.float32(eps))
    return np.asarray(a, np.float32) * scale + (beta - mean * scale)


def _reciprocal(a, mean, var, gamma, beta, eps=_EPS):
    scale = np.float32(1) / np.sqrt(var + np.float32(eps))
    return (np.asarray(a, np.float32) - mean) * scale * gamma + beta


def _in_float64(a, mean, var, gamma, beta, eps=_EPS):
    wide = (np.asarray(v, np.float64) for v in (a, mean, var, gamma, beta))
    a, mean, var, gamma, beta = wide
    return ((a - mean) / np.sqrt(var + eps) * gamma + beta).astype(np.float32)


def _mixed(a, mean, var, gamma, beta, eps=_EPS):
    return ((a - mean) / np.sqrt(var + np.float32(eps)) * gamma + beta).astype(np.float32)


_NORMALIZED_MISTAKES = {
    "eps stands outside the root; it belongs under it, sqrt(var + eps)":
        lambda a, mean, var, gamma, beta:
            (np.float32(a) - mean) / (np.sqrt(var) + np.float32(_EPS)) * gamma + beta,
    "eps is missing; it keeps the division defined where the variance is 0":
        lambda a, mean, var, gamma, beta:
            (np.float32(a) - mean) / np.sqrt(var) * gamma + beta,
    "the root is missing: the sums are divided by their standard deviation, sqrt(var + eps)":
        lambda a, mean, var, gamma, beta:
            (np.float32(a) - mean) / (var + np.float32(_EPS)) * gamma + beta,
    "the mean is not subtracted": lambda a, mean, var, gamma, beta:
        np.float32(a) / np.sqrt(var + np.float32(_EPS)) * gamma + beta,
    "beta is added before the multiplication with gamma; it comes last":
        lambda a, mean, var, gamma, beta:
            ((np.float32(a) - mean) / np.sqrt(var + np.float32(_EPS)) + beta) * gamma,
}  # fmt: skip
_ROUNDED_ELSEWHERE = {
    "the numbers are those of float64, rounded at the end; the network rounds to float32 after "
    "each operation": _in_float64,
    "integers minus float32 is float64 in NumPy: make float32 of the sums first": _mixed,
    "one multiplication and one addition with constants computed before are the same in "
    "mathematics, but round elsewhere; keep the order of the docstring": _other_order,
    "multiplying with 1 / sqrt(var + eps) rounds twice where a division rounds once; divide":
        _reciprocal,
}  # fmt: skip


def _parameters(seed, channels=1, round_numbers=False, limit=64):
    """Draw statistics typical of sums of `limit` signs, gamma of both signs; float32 (M,)."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(0, np.sqrt(limit), channels)
    var = limit * rng.uniform(0.3, 3, channels)
    gamma, beta = rng.normal(size=(2, channels))
    if round_numbers:
        mean, var = np.rint(mean), np.maximum(np.rint(np.sqrt(var)), 1) ** 2
        gamma = np.copysign(np.maximum(np.rint(np.abs(gamma) * 4), 1) / 4, gamma)
        beta = np.rint(beta * 4) / 4
    return dict(
        zip(
            ("mean", "var", "gamma", "beta"), np.float32([mean, var, gamma, beta]),
            strict=True,
        )
    )  # fmt: skip


def normalized_by_hand(folding: ModuleType) -> None:
    """normalized is right for two sums with mean 2, variance 16, gamma 1/2 and beta 0."""
    inputs = {
        "a": np.array([[6], [-2]], np.int32),
        **{k: np.float32([v]) for k, v in {"mean": 2, "var": 16, "gamma": 0.5, "beta": 0}.items()},
    }
    compare(folding.normalized, _normalized, inputs, _NORMALIZED_MISTAKES | _ROUNDED_ELSEWHERE)


def normalized_exactly(folding: ModuleType) -> None:
    """normalized equals the float32 network's numbers, with ==, for integers and for floats."""
    from hypothesis import strategies as st

    def check(a, seed, dtype):
        inputs = {"a": np.array([[a]], dtype), **_parameters(seed, 1)}
        compare(folding.normalized, _normalized, inputs, _ROUNDED_ELSEWHERE | _NORMALIZED_MISTAKES)

    for_all(
        check,
        a=st.integers(-64, 64), seed=st.integers(0, 999),
        dtype=st.sampled_from(["int32", "float32"]),
    )  # fmt: skip
    with np.errstate(all="ignore"):
        inputs = {"a": np.arange(-64, 65)[:, None], **_parameters(0, 500)}
        inputs["var"][:20] = 0
        compare(folding.normalized, _normalized, inputs, _ROUNDED_ELSEWHERE | _NORMALIZED_MISTAKES)


def normalized_dtype(folding: ModuleType) -> None:
    """normalized returns float32 for int32, int64 and float32 sums."""
    for dtype in (np.int32, np.int64, np.float32):
        inputs = {"a": np.array([[1], [2]], dtype), **_parameters(1)}
        answer = np.asarray(call(folding.normalized, inputs))
        if answer.dtype != np.float32:
            raise Wrong(
                f"the answer is {answer.dtype}: {np.dtype(dtype)} minus float32 is not float32 in "
                "NumPy; make float32 of the sums first",
                inputs, answer.dtype, "float32",
            )  # fmt: skip


def _real_threshold(mean, var, gamma, beta, dtype):
    mean, var, gamma, beta = (v.astype(dtype) for v in (mean, var, gamma, beta))
    with np.errstate(all="ignore"):
        return mean - beta * np.sqrt(var + dtype(_EPS)) / gamma


def _by_formula(dtype):
    def bits(sums, plus, mean, var, gamma, beta):
        t = _real_threshold(mean, var, gamma, beta, dtype)
        return np.where(gamma > 0, sums >= t, sums <= t)

    return bits


def _shifted(by):
    """Make bits with thresholds too high by a number."""
    return lambda sums, plus, **_: plus[np.clip(np.arange(len(sums)) - by, 0, len(sums) - 1)]


def _falling_threshold_of_rising(sums, plus, mean, var, gamma, beta):
    t = np.ceil(_real_threshold(mean, var, gamma, beta, np.float64))
    return (sums >= t) != (gamma < 0)


_FORMULAS = {
    "the threshold comes from mean - beta * sqrt(var + eps) / gamma: right in mathematics, but the "
    "network's float32 rounds elsewhere; ask normalized itself at every sum": _by_formula(
        np.float32
    ),
    "the threshold comes from the formula or from a norm in float64: right in mathematics, but the "
    "network rounds to float32; ask normalized itself at every sum": _by_formula(np.float64),
}
_FOLD_MISTAKES = {
    "a norm of exactly 0 has the sign +1: compare with >= 0": lambda sums, plus, **parameters:
        _normalized(sums[:, None], **parameters)[:, 0] > 0 if parameters["gamma"] > 0 else plus,
    "with gamma < 0 the flipped comparison is not(a >= threshold): where the norm is exactly 0 the "
    "sign is +1, so the threshold is the first sum below 0": _falling_threshold_of_rising,
    "the channel is not flipped: with gamma < 0 the norm falls, and its sign is +1 below the "
    "threshold": lambda sums, plus, **_: ~plus if plus[0] != plus[-1] else plus,
    "the threshold is too high by one: a >= threshold must hold at the first sum whose sign is "
    "the new one": _shifted(1),
    "the threshold is too low by one: it is the first sum with the new sign, not the last with "
    "the old one": _shifted(-1),
    "gamma = 0 is forgotten: then the norm is beta for every sum, a constant, and the formula "
    "divides by 0": lambda sums, plus, mean, var, gamma, beta:
        _by_formula(np.float32)(sums, plus, mean, var, gamma, beta) if gamma == 0 else plus,
    "a channel whose sign never changes has the other sign": lambda sums, plus, **_:
        ~plus if plus[0] == plus[-1] else plus,
}  # fmt: skip
_ANY_MISTAKES = (
    _FORMULAS | _FOLD_MISTAKES
)  # where rounding decides, the formula is off by one as well


def _fold_is_right(folding, limit, parameters, mistakes):
    """Raise the first sum of the first channel where the comparison is not the norm's sign."""
    inputs = {"limit": limit, **parameters}
    answer = call(folding.fold, inputs)
    channels = parameters["mean"].shape
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise Wrong("fold must return two arrays, thresholds and flipped", inputs, answer, "2")
    thresholds, flipped = map(np.asarray, answer)
    if thresholds.shape != channels or flipped.shape != channels:
        raise Wrong(
            f"thresholds and flipped must both have one value for each channel, shape {channels}",
            inputs, (thresholds.shape, flipped.shape), (channels, channels),
        )  # fmt: skip
    if thresholds.dtype.kind != "i" or flipped.dtype != bool:
        raise Wrong(
            "thresholds are integers and flipped is bool: sums are integers, and between two of "
            "them one integer decides",
            inputs, (thresholds.dtype, flipped.dtype), ("int64", "bool"),
        )  # fmt: skip
    sums = np.arange(-limit, limit + 1)
    plus = _normalized(sums[:, None], **parameters) >= 0
    bits = (sums[:, None] >= thresholds) != flipped
    wrong = np.flatnonzero((bits != plus).any(axis=0))
    if not len(wrong):
        return
    c = wrong[0]
    parameters = {name: value[c : c + 1] for name, value in parameters.items()}
    at = sums[np.flatnonzero(bits[:, c] != plus[:, c])[0]]
    value = _normalized(at, **parameters)[0]
    raise Wrong(
        _fold_mistake(mistakes, sums, bits[:, c], plus[:, c], parameters),
        {"limit": limit, **parameters, "sum": int(at)},
        f"({at} >= {thresholds[c]}) != {flipped[c]}, which is {bits[at + limit, c]}",
        f"{plus[at + limit, c]}, since normalized({at}) = {value}",
    )


def _fold_mistake(mistakes, sums, bits, plus, parameters):
    """Describe the mistake that makes these bits of one channel."""
    with np.errstate(all="ignore"):
        for text, mistaken in mistakes.items():
            if np.array_equal(bits, mistaken(sums, plus, **parameters)):
                return text
    return "the comparison is not the sign of normalized"


def _cases(folding, limit=8, mistakes=_FOLD_MISTAKES, **columns):
    """Make each column of small numbers a channel."""
    for values in zip(*columns.values(), strict=True):
        given = {k: np.float32([v]) for k, v in zip(columns, values, strict=True)}
        _fold_is_right(folding, limit, given, mistakes)


def fold_rising(folding: ModuleType) -> None:
    """fold finds the first sum with sign +1 where gamma > 0, between and exactly on integers."""
    _cases(folding, mean=[3, 2.5, 3, -4], var=[16] * 4, gamma=[2, 2, 1, 2], beta=[1, 1, 0, -1])


def fold_falling(folding: ModuleType) -> None:
    """fold flips where gamma < 0, and the sum at which the norm is 0 has the sign +1."""
    _cases(folding, mean=[2.5, 3, 0, -4], var=[16] * 4, gamma=[-2, -1, -1, -2], beta=[1, 0, 0, -1])


def fold_constant(folding: ModuleType) -> None:
    """fold makes a constant of gamma = 0, and of a norm that never reaches 0."""
    _cases(folding, mean=[3] * 5, var=[16] * 5, gamma=[0, 0, 0, 1, -1], beta=[1, -1, 0, 50, 50])


def fold_any(folding: ModuleType) -> None:
    """fold is exact for channels drawn at random, at every sum."""
    from hypothesis import strategies as st

    small = st.integers(-40, 40).map(lambda i: i / 8)
    for_all(
        lambda limit, mean, spread, gamma, beta: _cases(
            folding, limit, _ANY_MISTAKES, mean=[mean], var=[spread**2], gamma=[gamma], beta=[beta]
        ),
        limit=st.integers(1, 12), mean=small, spread=st.integers(1, 9), gamma=small, beta=small,
    )  # fmt: skip


def fold_rounding(folding: ModuleType) -> None:
    """fold decides as float32 does where rounding decides, in 60,000 channels."""
    for seed, round_numbers in ((0, True), (1, True), (2, False)):
        _fold_is_right(folding, 64, _parameters(seed, 20_000, round_numbers), _ANY_MISTAKES)


def _windows(bits):
    n, m, height, width = bits.shape
    return bits.reshape(n, m, height // 2, 2, width // 2, 2)


def _pooled(bits, flipped):
    one, every = _windows(bits).any(axis=(3, 5)), _windows(bits).all(axis=(3, 5))
    return np.where(flipped[:, None, None], every, one)


_POOLED_MISTAKES = {
    "OR in every channel: where the norm falls, the largest sum has the smallest sign, so a "
    "flipped channel is +1 only if all four are (AND)":
        lambda bits, flipped: _windows(bits).any(axis=(3, 5)),
    "AND in every channel: where the norm rises, one +1 among the four is enough (OR)":
        lambda bits, flipped: _windows(bits).all(axis=(3, 5)),
    "OR and AND are the wrong way round: flipped channels take AND":
        lambda bits, flipped: _pooled(bits, ~flipped),
    "the bits are flipped once more; they are already the norm's signs":
        lambda bits, flipped: _pooled(bits, flipped) != flipped[:, None, None],
    "the upper left bit of each window alone decides": lambda bits, flipped: bits[..., ::2, ::2],
}  # fmt: skip


def pooled_windows(folding: ModuleType) -> None:
    """fold_pooled is OR for a rising channel and AND for a falling one, window by window."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    def check(bits, flipped):
        inputs = {"bits": bits, "flipped": flipped}
        compare(folding.fold_pooled, _pooled, inputs, _POOLED_MISTAKES)

    one, none, every = np.eye(2, k=1) == 1, np.zeros((2, 2), bool), np.ones((2, 2), bool)
    row = np.concatenate([one, none, every], axis=1)
    check(np.stack([row, row])[None], np.array([False, True]))
    shapes = st.tuples(*(st.integers(1, 2) for _ in range(4)))
    bits = shapes.flatmap(lambda s: arrays(bool, (s[0], 2, 2 * s[2], 2 * s[3])))
    for_all(check, 100, bits=bits, flipped=arrays(bool, 2))


def pooled_sums(folding: ModuleType) -> None:
    """fold_pooled gives the sign of the norm of the largest sum, with the bits of all four."""
    sums = np.random.default_rng(0).integers(-16, 17, (3, 40, 4, 4))
    parameters = _parameters(3, 40, True, 16)
    integers = np.arange(-16, 17)[:, None]
    plus = _normalized(integers, **parameters) >= 0
    flipped = plus[0] & ~plus[-1]

    def signs(sums):
        return _normalized(sums.transpose(0, 2, 3, 1), **parameters).transpose(0, 3, 1, 2) >= 0

    inputs = {"bits": signs(sums), "flipped": flipped}
    largest = _windows(sums).max(axis=(3, 5))
    compare(folding.fold_pooled, lambda *_: signs(largest), inputs, _POOLED_MISTAKES)


def network(seed: int, widths: Sequence[int]) -> tuple[list[Array], list[dict[str, Any]], Array]:
    """Draw a random network: signs of the weights, and comparisons of all layers but the last."""
    rng = np.random.default_rng(seed)
    weights = [rng.choice(np.float32([-1, 1]), (m, k)) for k, m in itertools.pairwise(widths)]
    layers = [{"k": w.shape[1]} for w in weights]
    for layer, w in zip(layers[:-1], weights, strict=False):
        layer["thresholds"] = rng.integers(-2, 3, len(w))
        layer["flipped"] = rng.random(len(w)) < 0.5
    return weights, layers, rng.choice(np.float32([-1, 1]), (3, widths[0]))


def reading(
    weights: Sequence[Array],
    bits_of: Callable[[Array, Array, Array], Array] = lambda sums, t, f: (sums >= t) != f,
    signs: tuple[int, int] = (-1, 1),
    last: Callable[[Array], Array] | None = None,
    words: bool = False,
) -> Callable[[Sequence[dict[str, Any]], Array], Array]:
    """Make a function of (layers, x) that computes with floats, with at most one mistake."""

    def forward(layers, x):
        for layer, w in zip(layers, weights, strict=True):
            pad = -w.shape[1] % 64 if words else 0  # products of the unused bits of the last word
            sums = (x @ w.T).astype(np.int32) + pad
            if "thresholds" in layer:
                bits = bits_of(sums, layer["thresholds"], layer["flipped"])
                x = np.where(bits, np.float32(signs[1]), np.float32(signs[0]))
        return sums if last is None else last(sums)

    return forward


def predict_mistakes(weights: Sequence[Array]) -> dict[str, Callable[..., Array]]:
    """Make the message of each mistake -> the function with it."""
    return {
        "the bits reach pack as True and False, never negative, so all become +1: pack "
        "takes signs, +1 and -1": reading(weights, signs=(1, 1)),
        "the sums of the last layer are signed: the scores are the sums themselves":
            reading(weights, last=lambda s: np.where(s >= 0, 1, -1)),
        "k is not the layer's own: the unused bits of the last word count as equal signs; give "
        'xnor_matmul layer["k"]': reading(weights, words=True),
        "flipped is forgotten": reading(weights, lambda s, t, f: s >= t),
        "a sum that equals the threshold has reached it: compare with >=":
            reading(weights, lambda s, t, f: (s > t) != f),
        "thresholds are forgotten: the sums are compared with 0":
            reading(weights, lambda s, t, f: (s >= 0) != f),
    }  # fmt: skip


def predict_pieces(folding: ModuleType) -> None:
    """pack and xnor_matmul of chapter 04, which the network consists of, are right."""
    (w,), _, x = network(0, (70, 4))
    sums = folding.xnor_matmul(folding.pack(x), folding.pack(w), 70)
    if not np.array_equal(sums, x @ w.T):
        raise Wrong(
            "pack and xnor_matmul do not give the product of signs; mend packing.py first: "
            "tinybnn course check 04",
            {"k": 70}, np.asarray(sums), (x @ w.T).astype(np.int32),
        )  # fmt: skip


def predict_exactly(folding: ModuleType) -> None:
    """packed_predict gives the integer sums of the float network, one layer to four."""
    from hypothesis import strategies as st

    def check(seed, widths):
        weights, layers, x = network(seed, widths)
        for layer, w in zip(layers, weights, strict=True):
            layer["words"] = folding.pack(w)
        inputs = {"layers": layers, "x": x}
        try:
            compare(folding.packed_predict, reading(weights), inputs, predict_mistakes(weights))
        except Wrong as wrong:  # the words of the layers say little
            wrong.inputs = {"widths": list(widths), "images": len(x)}
            raise

    widths = st.lists(st.sampled_from([3, 70, 64, 1]), min_size=2, max_size=5)
    check(0, (70, 65, 3))
    for_all(check, 60, seed=st.integers(0, 999), widths=widths)


def predict_integers(folding: ModuleType) -> None:
    """packed_predict returns integers."""
    weights, layers, x = network(1, (8, 4))
    layers[0]["words"] = folding.pack(weights[0])
    answer = np.asarray(call(folding.packed_predict, {"layers": layers, "x": x}))
    if answer.dtype.kind != "i":
        raise Wrong("the scores are not integers", {"x": x}, answer.dtype, "int32")


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "06.1",
        "normalized",
        "Batch norm with fixed statistics, float32 in every operation, in the given order.",
        "The question",
        (normalized_by_hand, normalized_exactly, normalized_dtype),
        (
            "What dtype has an int32 array minus a float32 array? Print it.",
            "Make float32 of the sums with np.asarray(a, np.float32). The parameters are float32 "
            "already, and so is everything computed from them.",
            "The last line is the formula of the docstring. A division is not a multiplication "
            "with 1 / sqrt(...): that rounds twice.",
        ),
    ),
    Exercise(
        "06.2",
        "fold",
        "Threshold and flip of each channel, so that one integer comparison is the norm's sign.",
        "The better version: ask the function",
        (fold_rising, fold_falling, fold_constant, fold_any, fold_rounding),
        (
            "There are only 2 * limit + 1 sums. What does normalized say at each of them?",
            "In the bools normalized(sums[:, None], ...) >= 0, one column is a channel. It changes "
            "once or never. Compare the rows from the second on with the rows but the last.",
            "argmax over axis 0 of these changes finds the first True; the row behind it belongs "
            "to the threshold. Where any is False the channel is constant. The first row says "
            "which sign a channel begins with, so whether it is flipped.",
        ),
    ),
    Exercise(
        "06.3",
        "fold_pooled",
        "Max-pooling before the norm, on bits: OR where the norm rises, AND where it falls.",
        "Max-pool before the norm",
        (pooled_windows, pooled_sums),
        (
            "If the norm falls, which of the four sums has the smallest normalized value?",
            "Reshape to (N, M, H // 2, 2, W // 2, 2): a window is then on axes 3 and 5.",
            "any over both axes is OR, all is AND. np.where chooses by channel, if flipped has "
            "the shape (M, 1, 1).",
        ),
    ),
    Exercise(
        "06.4",
        "packed_predict",
        "A whole network of dense layers on words: product, comparison, packing, and again.",
        "A whole network on words",
        (predict_pieces, predict_exactly, predict_integers),
        (
            "What goes from one layer to the next: sums, bits, signs or words?",
            "Pack x once. Every layer makes sums by xnor_matmul; all but the last make bits by "
            "(sums >= thresholds) != flipped. What does pack want, bits or signs?",
            "np.where makes signs of the bits, and pack makes words of them for the next layer. "
            "The loop ends before the last layer, which returns its sums.",
        ),
    ),
)
