"""Chapter 03: a binary layer, batch norm, cross entropy, clipping and flips."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from tinybnn.course.checks.estimators import computed, engine
from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all
from tinybnn.typing import Array

_TOLERANCE = 1e-6


def _sign(x):
    return np.where(x >= 0, x.dtype.type(1), x.dtype.type(-1))


# ------------------------------------------------------------------- gradients in the own engine


def _unbroadcast(grad, shape):
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    return grad.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def own_functions(check: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    """Decorate a check of a layer alone: functions of other chapters are provided."""

    @functools.wraps(check)
    def checked(layers):
        own = engine(layers)

        def matmul(a, b):
            rule = lambda grad: (grad @ b.data.T, a.data.T @ grad)  # noqa: E731
            return own.Tensor(a.data @ b.data, (a, b), rule)

        def sign_ste(x, gradient=lambda x: np.abs(x) <= 1):
            return own.Tensor(_sign(x.data), (x,), lambda grad: (grad * gradient(x.data),))

        with (
            mock.patch.multiple(own, unbroadcast=_unbroadcast, matmul=matmul, create=True),
            mock.patch.multiple(layers, sign_ste=sign_ste, create=True),
        ):
            check(layers)

    return checked


def gradients(result: Any, grad: Array, tensors: Sequence[Any]) -> list[Array]:
    """Propagate a gradient by the rules of the operations to each of the tensors."""
    order, seen = [], set()

    def visit(node):
        if id(node) not in seen:
            seen.add(id(node))
            for parent in node.parents:
                visit(parent)
            order.append(node)

    visit(result)
    grads = {id(result): grad}
    for node in reversed(order):
        if node.rule is None or id(node) not in grads:
            continue
        for parent, share in zip(node.parents, node.rule(grads[id(node)]), strict=True):
            grads[id(parent)] = grads.get(id(parent), 0) + share
    return [np.asarray(grads.get(id(t), np.zeros(t.shape))) for t in tensors]


# ------------------------------------------------------------------------------------ binary linear


def _layer(layers):
    tensor = engine(layers).Tensor

    def binary_linear(x, latent):
        return computed("binary_linear", layers.binary_linear(tensor(x), tensor(latent)), tensor)

    return binary_linear


_LINEAR_MISTAKES = {
    "the products are with the latent weights themselves; the layer computes with their signs":
        lambda x, latent: x @ latent.T,
    "the product with the signs is not transposed: a row of `latent` belongs to one output":
        lambda x, latent: x @ _sign(latent),
    "sign(0) is 0 here; it must be +1": lambda x, latent: x @ np.sign(latent).T,
    "the inputs are made signs as well; they must be taken as they are":
        lambda x, latent: _sign(x) @ _sign(latent).T,
}  # fmt: skip

_X = np.float32([[0.5, -2.0, 1.0], [3.0, 0.25, -1.0]])
_LATENT = np.float32([[0.5, -0.25, 0.0], [-0.75, 1.0, 2.0], [-1.5, -1.0, 0.125]])


@own_functions
def linear_values(layers: ModuleType) -> None:
    """binary_linear is the product with the signs of the latent weights."""
    from hypothesis import strategies as st

    function, reference = _layer(layers), lambda x, latent: x @ _sign(latent).T

    def check(n, k, m, seed):
        rng = np.random.default_rng(seed)
        x, latent = rng.integers(-3, 4, (n, k)), rng.integers(-3, 4, (m, k)) / 2
        inputs = {"x": np.float32(x), "latent": np.float32(latent)}
        compare(function, reference, inputs, _LINEAR_MISTAKES)

    compare(function, reference, {"x": _X, "latent": _LATENT}, _LINEAR_MISTAKES)
    sizes = st.integers(1, 5)
    for_all(check, examples=50, n=sizes, k=sizes, m=sizes, seed=st.integers(0, 99))


_LINEAR_GRADIENT_MISTAKES = {
    "no gradient reaches the latent weights: sign must be sign_ste, not an array of signs":
        lambda x, latent, grad: (grad @ _sign(latent), np.zeros_like(latent)),
    "latent weights beyond 1 receive a gradient; use sign_ste with its clipping":
        lambda x, latent, grad: (grad @ _sign(latent), grad.T @ x),
    "no gradient reaches x":
        lambda x, latent, grad: (np.zeros_like(x), _to_latent(x, latent, grad)),
}  # fmt: skip


def _to_latent(x, latent, grad):
    return (grad.T @ x) * (np.abs(latent) <= 1)


@own_functions
def linear_gradient(layers: ModuleType) -> None:
    """the gradient reaches x through the signs, and the latent weights straight through."""
    tensor = engine(layers).Tensor

    def binary_linear(x, latent, grad):
        given = tensor(x), tensor(latent)
        return tuple(gradients(layers.binary_linear(*given), grad, given))

    grad = np.float32([[1.0, 2.0, -3.0], [0.5, -1.0, 4.0]])
    compare(
        binary_linear,
        lambda x, latent, grad: (grad @ _sign(latent), _to_latent(x, latent, grad)),
        {"x": _X, "latent": _LATENT, "grad": grad}, _LINEAR_GRADIENT_MISTAKES, _TOLERANCE,
    )  # fmt: skip


# --------------------------------------------------------------------------------------- batch norm


def _norm(x, gamma, beta, eps=1e-5):
    mean, var = x.mean(0), x.var(0)
    return (x - mean) / np.sqrt(var + eps) * gamma + beta, mean, var


def _of_variance(var):
    """Make batch norm with another variance."""
    return lambda x, gamma, beta, eps: (
        (x - x.mean(0)) / np.sqrt(var(x) + eps) * gamma + beta, x.mean(0), var(x)
    )  # fmt: skip


def _normalized(function):
    """Make batch norm with another result, but the right mean and variance."""
    return lambda x, gamma, beta, eps: (function(x, gamma, beta, eps), x.mean(0), x.var(0))


def _rows(x, gamma, beta, eps):
    mean, var = x.mean(1), x.var(1)
    y = (x - mean[:, None]) / np.sqrt(var[:, None] + eps)
    return y * gamma + beta, mean, var


_NORM_MISTAKES = {
    "the variance is divided by N - 1; batch norm takes the mean square, divided by N":
        _of_variance(lambda x: x.var(0, ddof=1)),
    "the variance is that of single numbers around 0; take the mean off first":
        _of_variance(lambda x: (x * x).mean(0)),
    "eps stands outside of the root; it must be added to the variance: sqrt(var + eps)":
        _normalized(lambda x, g, b, eps: (x - x.mean(0)) / (np.sqrt(x.var(0)) + eps) * g + b),
    "eps is not added to the variance":
        _normalized(lambda x, g, b, eps: (x - x.mean(0)) / np.sqrt(x.var(0)) * g + b),
    "the argument eps is not used":
        _normalized(lambda x, g, b, eps: _norm(x, g, b)[0]),
    "the deviations are divided by the variance; take its root":
        _normalized(lambda x, g, b, eps: (x - x.mean(0)) / (x.var(0) + eps) * g + b),
    "mean and variance are those of the rows; take them over axis 0, the batch": _rows,
    "mean and variance are those of the whole array; each column has its own":
        lambda x, g, b, eps: ((x - x.mean()) / np.sqrt(x.var() + eps) * g + b, x.mean(), x.var()),
    "gamma and beta are exchanged": _normalized(lambda x, g, b, eps: _norm(x, b, g, eps)[0]),
    "beta is added before gamma is multiplied; it comes last":
        _normalized(lambda x, g, b, eps: (_norm(x, 1, 0, eps)[0] + b) * g),
    "gamma and beta are not used": _normalized(lambda x, g, b, eps: _norm(x, 1, 0, eps)[0]),
}  # fmt: skip

_NORM = {
    "x": np.array([[1.0, 0.5], [2.0, -0.5], [6.0, 0.0]]),
    "gamma": np.array([2.0, -1.0]),
    "beta": np.array([0.5, 3.0]),
}


def _norm_of(layers):
    tensor = engine(layers).Tensor

    def batch_norm(x, gamma, beta, eps):
        answer = layers.batch_norm(tensor(x), tensor(gamma), tensor(beta), eps)
        if not isinstance(answer, tuple) or len(answer) != 3:
            raise Wrong("batch_norm must return three things: normalized, mean, var")
        y, mean, var = answer
        for name, value in (("mean", mean), ("var", var)):
            if isinstance(value, tensor):
                raise Wrong(f"{name} must be an array, not a Tensor: return {name}.data")
        return computed("batch_norm", y, tensor), mean, var

    return batch_norm


@own_functions
def norm_values(layers: ModuleType) -> None:
    """batch norm gives each column the mean beta and the spread gamma, eps inside the root."""
    from hypothesis import strategies as st

    function = _norm_of(layers)

    def check(n, m, seed, eps):
        rng = np.random.default_rng(seed)
        x, gamma, beta = rng.normal(1, 2, (n, m)), rng.normal(size=m), rng.normal(size=m)
        inputs = {"x": x, "gamma": gamma, "beta": beta, "eps": eps}
        compare(function, _norm, inputs, _NORM_MISTAKES, _TOLERANCE)

    compare(function, _norm, _NORM | {"eps": 0.25}, _NORM_MISTAKES, _TOLERANCE)
    for_all(check, examples=50, n=st.integers(2, 6), m=st.integers(1, 4),
            seed=st.integers(0, 99), eps=st.sampled_from([1e-5, 0.1]))  # fmt: skip


@own_functions
def norm_of_constants(layers: ModuleType) -> None:
    """a column of equal numbers gives beta, not NaN, with the default eps."""
    tensor = engine(layers).Tensor

    def batch_norm(x, gamma, beta):
        return layers.batch_norm(tensor(x), tensor(gamma), tensor(beta))[0].data

    inputs = {"x": np.full((3, 1), 7.0), "gamma": np.ones(1), "beta": np.array([0.5])}
    compare(batch_norm, lambda x, gamma, beta: 0 * x + beta, inputs, tolerance=_TOLERANCE)


def _norm_gradient(through_mean=True, through_var=True):
    def gradient(x, gamma, beta, grad):
        y, _, var = _norm(x, 1, 0)
        g = grad * gamma
        of_x = g - through_mean * g.mean(0) - through_var * y * (g * y).mean(0)
        return of_x / np.sqrt(var + 1e-5), (grad * y).sum(0), grad.sum(0)

    return gradient


_NORM_GRADIENT_MISTAKES = {
    "mean and variance are constants to the gradient; they depend on x, so compute them with "
    "Tensors, not from x.data": _norm_gradient(False, False),
    "the variance is a constant to the gradient; compute it with Tensors":
        _norm_gradient(True, False),
    "the mean is a constant to the gradient; compute it with Tensors": _norm_gradient(False, True),
}  # fmt: skip


@own_functions
def norm_gradient(layers: ModuleType) -> None:
    """the gradient goes through mean and variance, and reaches gamma and beta."""
    tensor = engine(layers).Tensor

    def batch_norm(x, gamma, beta, grad):
        given = tensor(x), tensor(gamma), tensor(beta)
        return tuple(gradients(layers.batch_norm(*given)[0], grad, given))

    grad = np.array([[1.0, -2.0], [0.5, 1.0], [3.0, 2.0]])
    inputs = _NORM | {"grad": grad}
    compare(batch_norm, _norm_gradient(), inputs, _NORM_GRADIENT_MISTAKES, _TOLERANCE)


# ------------------------------------------------------------------------------------ cross entropy


def _losses(scores, labels):
    largest = scores.max(1)
    log_sum = np.log(np.exp(scores - largest[:, None]).sum(1)) + largest
    return log_sum - scores[np.arange(len(labels)), labels]


def _entropy(scores, labels):
    return _losses(scores, labels).mean()


_ENTROPY_MISTAKES = {
    "this is the sum over the batch; take the mean": lambda s, y: _losses(s, y).sum(),
    "the mean runs over all N times C numbers; there is one loss for each of the N rows":
        lambda s, y: _losses(s, y).sum() / s.size,
    "there is one loss for each row; take their mean": _losses,
    "the sign is wrong: the loss is minus the log of the probability, above 0":
        lambda s, y: -_entropy(s, y),
    "the log is missing: this is the mean of the probabilities of the right class":
        lambda s, y: np.exp(-_losses(s, y)).mean(),
    "the softmax runs over the batch; it runs over the classes, axis 1":
        lambda s, y: (np.log(np.exp(s).sum(0)) - s)[np.arange(len(y)), y].mean(),
    "the mean is taken before the log; the log of each row comes first":
        lambda s, y: -np.log(np.exp(-_losses(s, y)).mean()),
}  # fmt: skip

_SCORES = {
    "scores": np.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]]),
    "labels": np.array([0, 2]),
}


def _entropy_of(layers):
    tensor = engine(layers).Tensor

    def cross_entropy(scores, labels):
        return computed("cross_entropy", layers.cross_entropy(tensor(scores), labels), tensor)

    return cross_entropy


@own_functions
def entropy_values(layers: ModuleType) -> None:
    """the loss is the mean of -log of the softmax at the right class."""
    from hypothesis import strategies as st

    function = _entropy_of(layers)

    def check(n, c, seed):
        rng = np.random.default_rng(seed)
        inputs = {"scores": rng.normal(0, 2, (n, c)), "labels": rng.integers(0, c, n)}
        compare(function, _entropy, inputs, _ENTROPY_MISTAKES, _TOLERANCE)

    compare(function, _entropy, _SCORES, _ENTROPY_MISTAKES, _TOLERANCE)
    for_all(check, examples=50, n=st.integers(1, 5), c=st.integers(1, 5), seed=st.integers(0, 99))


@own_functions
def entropy_is_stable(layers: ModuleType) -> None:
    """scores of 1000 and of -1000 neither overflow nor give log(0)."""
    function = _entropy_of(layers)
    for top in (1000.0, -1000.0):
        inputs = {"scores": np.array([[top, top - 1.0, top - 1000]]), "labels": np.array([1])}
        with np.errstate(all="ignore"):
            got = call(function, inputs)
        if not np.all(np.isfinite(got)):
            raise Wrong(
                f"the loss is {got} for scores near {top:.0f}, since exp(1000) is inf and "
                "exp(-1000) is 0; subtract the largest score of each row first: no "
                "probability changes",
                inputs, got, _entropy(**inputs),
            )  # fmt: skip
        compare(function, _entropy, inputs, tolerance=_TOLERANCE)


@own_functions
def entropy_gradient(layers: ModuleType) -> None:
    """the gradient is (softmax - 1 at the right class) / N."""
    tensor = engine(layers).Tensor

    def cross_entropy(scores, labels):
        given = tensor(scores)
        result = layers.cross_entropy(given, labels)
        return gradients(result, np.ones(result.shape), [given])[0]

    compare(cross_entropy, _entropy_gradient, _SCORES, _ENTROPY_GRADIENT_MISTAKES, _TOLERANCE)


def _softmax(scores):
    exps = np.exp(scores - scores.max(1, keepdims=True))
    return exps / exps.sum(1, keepdims=True)


def _entropy_gradient(scores, labels):
    return (_softmax(scores) - np.eye(scores.shape[1])[labels]) / len(scores)


_ENTROPY_GRADIENT_MISTAKES = {
    "no gradient reaches the scores; compute with Tensors, not with scores.data":
        lambda scores, labels: 0 * scores,
    "the score of the right class is a constant to the gradient; select it with a Tensor: multiply "
    "with ones and zeros, and sum": lambda scores, labels: _softmax(scores) / len(scores),
    "the gradient is not divided by N, the mean's share of each row":
        lambda scores, labels: _entropy_gradient(scores, labels) * len(scores),
}  # fmt: skip


# --------------------------------------------------------------------------------- clipping, flips


_CLIP_MISTAKES = {
    "the array is unchanged: np.clip makes a new one, unless it is told where to write, and "
    "`latent = ...` only gives the new one a name": lambda latent, limit: latent,
    "the argument `limit` is not used": lambda latent, limit: np.clip(latent, -1, 1),
    "the weights below -limit stay": lambda latent, limit: np.minimum(latent, limit),
    "the weights above limit stay": lambda latent, limit: np.maximum(latent, -limit),
    "the weights have become signs; those inside stay what they are, they are the memory":
        lambda latent, limit: _sign(latent) * limit,
    "weights beyond the limit have become 0; they go to the limit that they passed":
        lambda latent, limit: np.where(np.abs(latent) <= limit, latent, 0),
    "all weights are scaled; only those beyond the limit change":
        lambda latent, limit: latent * limit / max(np.abs(latent).max(), limit),
}  # fmt: skip


def clip_values(layers: ModuleType) -> None:
    """latent weights beyond the limit go to it, in place; the others stay."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    def clip_latents(latent, limit):
        changed = latent.copy()
        layers.clip_latents(changed, limit)
        return changed

    def check(latent, limit):
        inputs = {"latent": latent, "limit": limit}
        compare(clip_latents, lambda w, limit: np.clip(w, -limit, limit), inputs, _CLIP_MISTAKES)

    check(np.float32([[-3.0, -0.5, 0.0], [0.25, 0.75, 2.0]]), 0.5)
    floats = st.floats(-3, 3, width=32)
    shapes = st.sampled_from([(1,), (3,), (2, 2)])
    for_all(check, examples=50, latent=arrays(np.float32, shapes, elements=floats),
            limit=st.sampled_from([0.5, 1.0, 2.0]))  # fmt: skip


def clip_default(layers: ModuleType) -> None:
    """without an argument the limit is 1."""
    latent = np.float32([-3.0, 0.5, 1.5])
    layers.clip_latents(latent)
    if not np.array_equal(latent, wanted := np.float32([-1.0, 0.5, 1.0])):
        inputs = {"latent": np.float32([-3.0, 0.5, 1.5])}
        raise Wrong("the default limit is not 1", inputs, latent, wanted)


def _flips(before, after):
    return float(np.mean((before >= 0) != (after >= 0)))


_FLIP_MISTAKES = {
    "a weight that leaves 0 upwards, or reaches it from there, counts as flipped; sign(0) is +1, "
    "as above 0": lambda a, b: np.mean(np.sign(a) != np.sign(b)),
    "a flip between 0, whose sign is +1, and a weight below 0 is not counted; a product below 0 "
    "does not see it": lambda a, b: np.mean(a * b < 0),
    "sign(0) is +1, not -1: compare with >= 0": lambda a, b: np.mean((a > 0) != (b > 0)),
    "this is the number of flips; divide by the number of weights":
        lambda a, b: np.sum((a >= 0) != (b >= 0)),
    "the number of flips is divided by the number of rows; divide by that of all weights, .size":
        lambda a, b: np.sum((a >= 0) != (b >= 0)) / len(a),
    "there is one share for each row; the ratio is one number, over all weights":
        lambda a, b: np.mean((a >= 0) != (b >= 0), axis=-1),
    "there is one share for each column; the ratio is one number, over all weights":
        lambda a, b: np.mean((a >= 0) != (b >= 0), axis=0),
    "every changed weight counts; only those whose sign changed do": lambda a, b: np.mean(a != b),
    "this is the share of weights that kept their sign": lambda a, b: 1 - _flips(a, b),
}  # fmt: skip


def flip_values(layers: ModuleType) -> None:
    """the flip ratio is the share of signs that changed, with sign(0) = +1."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    def check(shape, data):
        numbers = st.sampled_from([-1.5, -0.5, 0.0, 0.25, 1.0])
        before, after = (data.draw(arrays(np.float32, shape, elements=numbers)) for _ in "ab")
        compare(layers.flip_ratio, _flips, {"before": before, "after": after}, _FLIP_MISTAKES,
                _TOLERANCE)  # fmt: skip

    before = np.float32([[0.5, -0.5, 0.0, 0.0, 1.0], [-1.0, 0.25, -0.5, 0.5, 0.75]])
    after = np.float32([[0.25, 0.5, 0.5, -0.25, 1.0], [-1.0, 0.5, 0.0, -0.5, 0.5]])
    compare(
        layers.flip_ratio, _flips, {"before": before, "after": after}, _FLIP_MISTAKES, _TOLERANCE
    )
    for_all(check, examples=100, shape=st.sampled_from([(1,), (3,), (2, 3)]), data=st.data())


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "03.1",
        "binary_linear",
        "The product of x with the signs of the latent weights, in your own engine.",
        "A binary layer by hand",
        (linear_values, linear_gradient),
        (
            "Which operation of chapter 02 turns the latent weights into signs and still lets a "
            "gradient through?",
            "The shapes are (N, K) and (M, K), the result is (N, M): which one must be transposed?",
            "Two operations on Tensors: sign_ste of the latent weights, and @ with its .T.",
        ),
    ),
    Exercise(
        "03.2",
        "batch_norm",
        "Each column with mean 0 and variance 1 over the batch, times gamma, plus beta.",
        "Batch norm",
        (norm_values, norm_of_constants, norm_gradient),
        (
            "Which axis is the batch? Check with the example of four numbers in the notebook.",
            "Compute mean, deviations and variance as Tensors, so that the gradient goes through "
            "them: the engine has mean(axis), - and *.",
            "var is the mean of the squared deviations. Divide the deviations by "
            "(var + eps).sqrt(), then gamma and beta; return mean.data and var.data as arrays.",
        ),
    ),
    Exercise(
        "03.3",
        "cross_entropy",
        "The mean over the batch of -log of the softmax at the right class, safe for large scores.",
        "Cross entropy",
        (entropy_values, entropy_is_stable, entropy_gradient),
        (
            "-log(exp(s_right) / sum of exp(s)) can be written without a quotient.",
            "It is log(sum of exp(s)) - s_right. The engine has no indexing: to select s_right, "
            "multiply with an array of ones and zeros (np.eye(C)[labels]) and sum over axis 1.",
            "First subtract scores.data.max(1, keepdims=True), an array and so a constant, from "
            "the scores: the loss stays the same and no exp is above 1. Mind the ones' dtype.",
        ),
    ),
    Exercise(
        "03.4",
        "clip_latents",
        "Bring latent weights beyond the limit back to it, in place.",
        "Latent weights and clipping",
        (clip_values, clip_default),
        (
            "After latent = something(latent) the caller still has the old array.",
            "NumPy's functions can write into an array that exists: look up the argument out.",
            "np.clip(array, low, high, out=array), or an assignment to latent[...].",
        ),
    ),
    Exercise(
        "03.5",
        "flip_ratio",
        "The share of weights whose sign changed, where sign(0) is +1.",
        "Latent weights and clipping",
        (flip_values,),
        (
            "What is the sign of 0 in this course? Does a weight that goes from 0 to 0.3 flip?",
            "before >= 0 is an array of bools, one for each sign. Compare two such arrays.",
            "The mean of an array of bools is the share of True in it; make it a float.",
        ),
    ),
)
