"""Chapter 10: depth-wise convolutions, weights with three levels, a shortcut before the norm."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tinybnn.course.checks.estimators import computed, engine
from tinybnn.course.checks.layers import gradients, own_functions
from tinybnn.course.checks.packing import place, product
from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all, provided

_TOLERANCE = 1e-6


def _seen(x, size, padding=0, value=0):
    """(N, Ho, Wo, C, size, size)"""
    frame = (padding, padding)
    padded = np.pad(x, ((0, 0), (0, 0), frame, frame), constant_values=value)
    return sliding_window_view(padded, (size, size), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)


def _windows(x, size, stride=1, padding=0, value=0):
    seen = _seen(x, size, padding, value)[:, ::stride, ::stride]
    return seen.reshape(*seen.shape[:3], -1)


# -------------------------------------------------------------------------------------- depth-wise


def _depthwise(x, weight, padding=0, value=0):
    seen = _seen(x, weight.shape[-1], padding, value)
    return (seen * weight).sum(axis=(-1, -2)).transpose(0, 3, 1, 2)


def _mixed(x, weight, padding, value):
    """A regular convolution: the sum over all channels, for each filter."""
    seen = _seen(x, weight.shape[-1], padding, value)
    return np.einsum("nhwcij,oij->nohw", seen, weight)


def _interleaved(x, weight, padding, value):
    """Read the values of a window in the order tap, channel."""
    size, channels = weight.shape[-1], len(weight)
    seen = _windows(x, size, 1, padding, value)
    seen = seen.reshape(*seen.shape[:3], size * size, channels)
    return (seen * weight.reshape(channels, -1).T).sum(axis=-2).transpose(0, 3, 1, 2)


_DEPTHWISE_MISTAKES = {
    "all channels are added up, as in a regular convolution: in a depth-wise one an output channel "
    "sees the input channel of its own number only": _mixed,
    "all channels are added up into one; each channel keeps its own sums":
        lambda *args: _depthwise(*args).sum(axis=1, keepdims=True),
    "the first filter is used for all channels; channel c has the filter weight[c]":
        lambda x, weight, *more: _depthwise(x, np.repeat(weight[:1], len(weight), 0), *more),
    "the values of a window are read in the order tap, channel; `windows` has the channel first: "
    "reshape its last axis to (C, size * size)": _interleaved,
    "the filters are turned by 180 degrees; networks slide them as they are":
        lambda x, weight, *more: _depthwise(x, weight[:, ::-1, ::-1], *more),
    "the image has no frame: use padding": lambda x, weight, *_: _depthwise(x, weight),
    "the frame holds 0 here; it must hold `value`":
        lambda x, weight, padding, value: _depthwise(x, weight, padding),
    "this is the mean over the taps; the sum is wanted":
        lambda x, weight, *more: _depthwise(x, weight, *more) / weight[0].size,
    "the answer has its channels last; wanted is (N, C, Ho, Wo)":
        lambda *args: _depthwise(*args).transpose(0, 2, 3, 1),
    "the sums are reshaped to (N, C, Ho, Wo) as they are; they are in the order N, Ho, Wo, C: "
    "transpose them":
        lambda *args: _depthwise(*args).transpose(0, 2, 3, 1).reshape(_depthwise(*args).shape),
}  # fmt: skip


def depthwise_values(dual: ModuleType) -> None:
    """depthwise sums the taps of each channel alone, for any padding and value of the frame."""
    from hypothesis import strategies as st

    def check(images, channels, height, width, size, padding, value, seed):
        rng = np.random.default_rng(seed)
        inputs = {
            "x": rng.integers(-3, 4, (images, channels, height, width)).astype(np.float32),
            "weight": rng.integers(-3, 4, (channels, size, size)).astype(np.float32),
            "padding": padding, "value": value,
        }  # fmt: skip
        compare(dual.depthwise, _depthwise, inputs, _DEPTHWISE_MISTAKES)

    few = st.integers(1, 3)
    with provided(dual, windows=_windows):
        check(1, 2, 3, 4, 2, 0, 0, 0)
        check(2, 3, 3, 4, 3, 1, -1, 0)
        for_all(check, examples=50, images=few, channels=few, height=st.integers(3, 5),
                width=st.integers(3, 5), size=few, padding=st.integers(0, 2),
                value=st.sampled_from([0, -1]), seed=st.integers(0, 99))  # fmt: skip


def depthwise_dtype(dual: ModuleType) -> None:
    """depthwise keeps float32 and float64."""
    with provided(dual, windows=_windows):
        for dtype in (np.float32, np.float64):
            inputs = {"x": np.ones((1, 2, 3, 3), dtype), "weight": np.ones((2, 3, 3), dtype)}
            answer = np.asarray(call(dual.depthwise, inputs))
            if answer.dtype != dtype:
                raise Wrong("the dtype of x is not kept", inputs, answer.dtype, np.dtype(dtype))


# ------------------------------------------------------------------------------------ three levels


def _sign(x):
    return np.where(x >= 0, x.dtype.type(1), x.dtype.type(-1))


def _levels(first, second):
    return (_sign(first) + _sign(second)) / 2


_LEVELS_MISTAKES = {
    "the levels are -2, 0 and 2: the mean of two signs is half their sum":
        lambda first, second: _sign(first) + _sign(second),
    "a latent weight of 0 counts as sign 0; sign(0) is +1: use your sign_ste":
        lambda first, second: (np.sign(first) + np.sign(second)) / 2,
    "this is one sign, that of the sum of both latent weights; take the sign of each first, then "
    "the mean": lambda first, second: _sign(first + second),
    "this is the mean of the latent weights; take the mean of their signs":
        lambda first, second: (first + second) / 2,
    "the product of the signs has two levels; their mean has three":
        lambda first, second: _sign(first) * _sign(second),
    "the signs are subtracted: two planes that agree give 0 here; they must give their sign":
        (lambda first, second: (_sign(first) - _sign(second)) / 2,
         lambda first, second: (_sign(second) - _sign(first)) / 2),
    "only the first plane is used": lambda first, second: _sign(first),
}  # fmt: skip

# All pairs of signs, 0, the borders, and latent weights beyond them.
_PLANES = {
    "first": np.float32([[0.5, -0.25, 0.75, -0.5], [0.0, 1.0, -1.0, 1.5], [0.25, -2.0, 3.0, -0.5]]),
    "second": np.float32([[0.25, -0.5, -1.0, 0.5], [-0.5, 0.0, 2.0, 1.5], [-3.0, 0.5, 0.5, -0.75]]),
}


@own_functions
def levels_values(dual: ModuleType) -> None:
    """three_levels is -1, 0 or +1, the mean of the two signs, where sign(0) is +1."""
    from hypothesis import strategies as st

    tensor = engine(dual).Tensor

    def three_levels(first, second):
        answer = dual.three_levels(tensor(first), tensor(second))
        return computed("three_levels", answer, tensor)

    def check(shape, seed):
        rng = np.random.default_rng(seed)
        first, second = (np.float32(rng.integers(-3, 4, shape) / 2) for _ in range(2))
        inputs = {"first": first, "second": second}
        compare(three_levels, _levels, inputs, _LEVELS_MISTAKES, probes=[_PLANES])

    compare(three_levels, _levels, _PLANES, _LEVELS_MISTAKES)
    for_all(check, examples=50, seed=st.integers(0, 99),
            shape=st.sampled_from([(1,), (3,), (2, 3), (2, 3, 3)]))  # fmt: skip


def _passes(x):
    return np.abs(x) <= 1


def _shares(first, second, grad):
    return grad * _passes(first) / 2, grad * _passes(second) / 2


_SHARES_MISTAKES = {
    "each plane gets the whole gradient; the mean passes half of it to each, as a plane moves the "
    "weight by half its step":
        lambda first, second, grad: (grad * _passes(first), grad * _passes(second)),
    "a quarter of the gradient arrives: it is halved twice":
        lambda first, second, grad: (grad * _passes(first) / 4, grad * _passes(second) / 4),
    "latent weights beyond 1 receive a gradient; use sign_ste with its clipping":
        lambda first, second, grad: (grad / 2, grad / 2),
    "the gradient stops where the weight is 0; both planes need it there, too, or the weight could "
    "never leave 0":
        lambda first, second, grad: tuple(
            share * (_levels(first, second) != 0) for share in _shares(first, second, grad)),
    "the clipping looks at the mean of both latent weights; each plane has its own":
        lambda first, second, grad: (grad * _passes((first + second) / 2) / 2,) * 2,
    "a plane gets a gradient only where both latent weights are within [-1, 1]; each one decides "
    "for itself":
        lambda first, second, grad: (grad * (_passes(first) & _passes(second)) / 2,) * 2,
    "no gradient reaches the latent weights: sign must be sign_ste, not an array of signs":
        lambda first, second, grad: (np.zeros_like(first), np.zeros_like(second)),
    "no gradient reaches the second plane":
        lambda first, second, grad: (_shares(first, second, grad)[0], np.zeros_like(second)),
    "no gradient reaches the first plane":
        lambda first, second, grad: (np.zeros_like(first), _shares(first, second, grad)[1]),
}  # fmt: skip


@own_functions
def levels_gradient(dual: ModuleType) -> None:
    """each plane gets half of the gradient where its own latent weight is within [-1, 1]."""
    tensor = engine(dual).Tensor

    def three_levels(first, second, grad):
        given = tensor(first), tensor(second)
        return tuple(gradients(dual.three_levels(*given), grad, given))

    grad = np.arange(2, 14, dtype=np.float32).reshape(3, 4)
    compare(
        three_levels, _shares, _PLANES | {"grad": grad}, _SHARES_MISTAKES, _TOLERANCE,
        results=("gradient of the first plane", "gradient of the second plane"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------ dual product


def _dot(a, b, k):
    return product(a, b, k).astype(np.int32)


def _dual(a, first, second, k):
    return (product(a, first, k) + product(a, second, k)) // 2


_DUAL_MISTAKES = {
    "this is the sum of both products; a weight is the mean of two signs: take half":
        lambda a, first, second, k: product(a, first, k) + product(a, second, k),
    "each product is halved before they are added: with odd k both are odd, and // rounds them "
    "down. Their sum is always even: add first":
        lambda a, first, second, k: product(a, first, k) // 2 + product(a, second, k) // 2,
    "the planes are joined by AND; then a weight of 0 counts as -1. Two products are needed":
        lambda a, first, second, k: product(a, first & second, k),
    "the planes are joined by OR; then a weight of 0 counts as +1. Two products are needed":
        lambda a, first, second, k: product(a, first | second, k),
    "the planes are joined by XOR; that says where weights are 0, not what the others are":
        lambda a, first, second, k: product(a, first ^ second, k),
    "only the first plane is used": lambda a, first, second, k: product(a, first, k),
    "the products are subtracted; the mean is half of their sum":
        lambda a, first, second, k: (product(a, first, k) - product(a, second, k)) // 2,
    "both planes together have 2 k products, but k is taken for one of them: each product is "
    "k - 2 * differences":
        lambda a, first, second, k: (product(a, first, k) + product(a, second, k) - k) // 2,
    "both planes have k products of their own; with 2 * k in each the sum is k too large":
        lambda a, first, second, k: _dual(a, first, second, 2 * k),
}  # fmt: skip


def dual_values(dual: ModuleType) -> None:
    """dual_matmul equals the product with the weights -1, 0 and +1, for any k."""
    from hypothesis import strategies as st

    def check(n, m, k, seed):
        rng = np.random.default_rng(seed)
        a, first, second = (
            place(rng.choice(np.float32([-1, 1]), (rows, k))) for rows in (n, m, m)
        )  # fmt: skip
        inputs = {"a": a, "first": first, "second": second, "k": k}
        compare(dual.dual_matmul, _dual, inputs, _DUAL_MISTAKES)

    with provided(dual, xnor_matmul=_dot, xnor_matmul_fast=_dot):
        check(2, 3, 9, 0)
        check(2, 3, 70, 0)
        few = st.integers(1, 3)
        for_all(check, examples=100, n=few, m=few, k=st.integers(1, 130), seed=st.integers(0, 99))


def dual_dtype(dual: ModuleType) -> None:
    """dual_matmul returns int32."""
    signs = np.float32([[1, -1, 1]])
    inputs = {"a": place(signs), "first": place(signs), "second": place(-signs), "k": 3}
    with provided(dual, xnor_matmul=_dot, xnor_matmul_fast=_dot):
        answer = np.asarray(call(dual.dual_matmul, inputs))
    if answer.dtype != np.int32:
        why = ": / makes floats, // keeps integers" if answer.dtype.kind == "f" else ""
        raise Wrong(f"the answer is not int32{why}", inputs, answer.dtype, "int32")


# --------------------------------------------------------------------------------------- residual


def _rows(x):
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def _back(rows, shape):
    images, channels, height, width = shape
    return rows.reshape(images, height, width, channels).transpose(0, 3, 1, 2)


def _normalized(rows, gamma, beta, eps):
    mean, var = rows.mean(0), rows.var(0)
    return (rows - mean) / np.sqrt(var + eps) * gamma + beta, mean, var


def _norm(x, gamma, beta, eps):
    rows, mean, var = _normalized(_rows(x), gamma, beta, eps)
    return _back(rows, x.shape), mean, var


def _residual(sums, x, gamma, beta, eps):
    y, mean, var = _norm(sums + x, gamma, beta, eps)
    return y + x, mean, var


def _shortcuts(before, behind):
    """Make a mistake of what is added before the norm and behind it."""

    def residual(sums, x, gamma, beta, eps):
        y, mean, var = _norm(before(sums, x), gamma, beta, eps)
        return y + behind(sums, x), mean, var

    return residual


def _mixed_channels(sums, x, gamma, beta, eps):
    rows, mean, var = _normalized((sums + x).reshape(-1, x.shape[1]), gamma, beta, eps)
    return rows.reshape(x.shape) + x, mean, var


def _not_back(sums, x, gamma, beta, eps):
    rows, mean, var = _normalized(_rows(sums + x), gamma, beta, eps)
    return rows.reshape(x.shape) + x, mean, var


_RESIDUAL_MISTAKES = {
    "x is added behind the norm only, as in Bi-Real Net: add it to the sums before the norm, too":
        _shortcuts(lambda sums, x: sums, lambda sums, x: x),
    "x is added before the norm only; it is added once more behind it":
        _shortcuts(lambda sums, x: sums + x, lambda sums, x: 0),
    "neither shortcut is there: add x before the norm and behind it":
        _shortcuts(lambda sums, x: sums, lambda sums, x: 0),
    "behind the norm sums + x is added; the second shortcut is x alone":
        _shortcuts(lambda sums, x: sums + x, lambda sums, x: sums + x),
    "behind the norm the sums are added; the second shortcut is x":
        _shortcuts(lambda sums, x: sums + x, lambda sums, x: sums),
    "x is added twice before the norm, and not behind it":
        _shortcuts(lambda sums, x: sums + 2 * x, lambda sums, x: 0),
    "x is added twice behind the norm, and not before it":
        _shortcuts(lambda sums, x: sums, lambda sums, x: 2 * x),
    "channels are mixed: reshaped as it is, (N, C, H, W) has its channels in the wrong places. "
    "Transpose to (N, H, W, C) first": _mixed_channels,
    "the rows are reshaped to the images' shape as they are; they are in the order N, H, W, C: "
    "reshape to that, then transpose": _not_back,
    "the argument eps is not used": lambda *args: _residual(*args[:-1], 1e-5),
}  # fmt: skip


def _given_norm(own):
    """A right batch_norm, an operation of the student's engine."""

    def batch_norm(x, gamma, beta, eps=1e-5):
        y, mean, var = _normalized(x.data, gamma.data, beta.data, eps)
        spread = np.sqrt(var + eps)
        unit = (x.data - mean) / spread

        def rule(grad):
            g = grad * gamma.data
            to_x = (g - g.mean(0) - unit * (g * unit).mean(0)) / spread
            return to_x, (grad * unit).sum(0), grad.sum(0)

        return own.Tensor(y, (x, gamma, beta), rule), mean, var

    return batch_norm


def _residual_of(dual):
    tensor = engine(dual).Tensor

    def residual_norm(sums, x, gamma, beta, eps):
        given = [tensor(array) for array in (sums, x, gamma, beta)]
        with provided(dual, batch_norm=_given_norm(engine(dual))):
            answer = dual.residual_norm(*given, eps)
        if not isinstance(answer, tuple) or len(answer) != 3:
            raise Wrong("residual_norm must return three things: y, mean, var")
        y, mean, var = answer
        return computed("residual_norm", y, tensor), mean, var

    return residual_norm


def _blocks(shape, seed):
    rng = np.random.default_rng(seed)
    sums = 2.0 * rng.integers(0, 10, shape) - 9
    gamma, beta = rng.normal(size=(2, shape[1]))
    return {"sums": sums, "x": rng.normal(size=shape), "gamma": gamma, "beta": beta}


_PARTS = "y", "mean", "var"


@own_functions
def residual_values(dual: ModuleType) -> None:
    """residual_norm is norm(sums + x) + x, a mean and a variance for each channel."""
    from hypothesis import strategies as st

    function = _residual_of(dual)
    probe = _blocks((2, 3, 2, 4), 0) | {"eps": 0.25}

    def check(images, channels, height, width, seed, eps):
        inputs = _blocks((images, channels, height, width), seed) | {"eps": eps}
        compare(function, _residual, inputs, _RESIDUAL_MISTAKES, _TOLERANCE, [probe], _PARTS)

    compare(function, _residual, probe, _RESIDUAL_MISTAKES, _TOLERANCE, results=_PARTS)
    few = st.integers(1, 3)
    for_all(check, examples=50, images=st.integers(2, 3), channels=few, height=few, width=few,
            seed=st.integers(0, 99), eps=st.sampled_from([1e-5, 0.1]))  # fmt: skip


def _residual_gradient(before=True, behind=True, norm=True, rows_in=True):
    """Make the gradients of sums, x, gamma and beta, with or without each of the paths.

    Without `rows_in` the norm passes a gradient to gamma and beta only.
    """

    def gradient(sums, x, gamma, beta, grad):
        rows, _, var = _normalized(_rows(sums + x), 1, 0, 1e-5)
        incoming = _rows(grad)
        g = incoming * gamma
        to_sums = (g - g.mean(0) - rows * (g * rows).mean(0)) / np.sqrt(var + 1e-5)
        to_sums = norm * rows_in * _back(to_sums, x.shape)
        to_x = before * to_sums + behind * grad
        return to_sums, to_x, norm * (incoming * rows).sum(0), norm * incoming.sum(0)

    return gradient


_RESIDUAL_GRADIENT_MISTAKES = {
    "no gradient passes the shortcut behind the norm: add x, the Tensor, not x.data":
        _residual_gradient(behind=False),
    "no gradient passes the shortcut before the norm: add x, the Tensor, not x.data":
        _residual_gradient(before=False),
    "no gradient passes either shortcut: add x, the Tensor, not x.data":
        _residual_gradient(before=False, behind=False),
    "no gradient passes the norm: keep Tensors, not arrays, up to batch_norm and behind it":
        _residual_gradient(norm=False),
    "no gradient passes from the norm to sums and x: batch_norm's argument must be sums + x, "
    "reshaped as a Tensor; an array, such as .data, has no gradient":
        _residual_gradient(rows_in=False),
}  # fmt: skip


@own_functions
def residual_gradient(dual: ModuleType) -> None:
    """the gradient reaches x by both shortcuts, and the sums, gamma and beta by the norm."""
    tensor = engine(dual).Tensor

    def residual_norm(sums, x, gamma, beta, grad):
        given = [tensor(array) for array in (sums, x, gamma, beta)]
        with provided(dual, batch_norm=_given_norm(engine(dual))):
            result = dual.residual_norm(*given)[0]
            return tuple(gradients(result, grad, given))

    inputs = _blocks((2, 3, 2, 4), 0)
    inputs["grad"] = np.random.default_rng(1).normal(size=(2, 3, 2, 4))
    compare(
        residual_norm, _residual_gradient(), inputs, _RESIDUAL_GRADIENT_MISTAKES, _TOLERANCE,
        results=[f"gradient of {name}" for name in ("sums", "x", "gamma", "beta")],
    )  # fmt: skip


# -------------------------------------------------------------------------------------- operations


def _operations(channels, filters, size, positions, groups, planes):
    products = positions * filters * (channels // groups) * size**2
    return products if planes == 0 else planes * products / 64


def _changed(**values):
    """Make the mistake of counting with some arguments replaced."""
    names = "channels", "filters", "size", "positions", "groups", "planes"

    def operations(*args):
        given = dict(zip(names, args, strict=True))
        return _operations(**given | {k: v(**given) for k, v in values.items()})

    return operations


_OPERATIONS_MISTAKES = {
    "groups are not used: a filter sees channels // groups channels only, in a depth-wise "
    "convolution one": _changed(groups=lambda **_: 1),
    "groups divide the number of filters as well; in all there are `filters`, each of which "
    "sees channels // groups channels":
        lambda *args: _operations(*args) / args[4],
    "a filter has size * size taps for each channel, not size":
        lambda *args: _operations(*args) / args[2],
    "the filter is applied at each of the `positions`: multiply by them":
        _changed(positions=lambda **_: 1),
    "a product of signs is counted as a whole operation; 64 of them are one":
        lambda *args: _operations(*args) * (64 if args[5] else 1),
    "64 products of signs are one operation, not 32":
        lambda *args: _operations(*args) * (2 if args[5] else 1),
    "products of real numbers are divided by 64, too; with planes = 0 each is one operation":
        lambda *args: _operations(*args) / (1 if args[5] else 64),
    "with planes = 0 nothing is counted; real weights have one operation a product":
        lambda *args: _operations(*args) * (args[5] > 0),
    "the second plane is not counted: with planes = 2 there are two products of signs a tap":
        _changed(planes=lambda planes, **_: min(planes, 1)),
    "log2(3) = 1.58 is how many bits a weight holds; it takes two products of signs, one a plane":
        lambda *args: _operations(*args) * (np.log2(3) / 2 if args[5] == 2 else 1),
    "the quotient is rounded down; OPs are a way of counting, so keep the fraction: / and not //":
        lambda *args: _operations(*args) // 1,
}  # fmt: skip

_COUNTED = (
    dict(channels=8, filters=16, size=3, positions=49, groups=1, planes=1),
    dict(channels=8, filters=8, size=3, positions=49, groups=8, planes=2),
    dict(channels=6, filters=12, size=5, positions=7, groups=2, planes=0),
)  # fmt: skip


def operations_values(dual: ModuleType) -> None:
    """operations is products of reals, or products of signs in all planes over 64."""
    from hypothesis import strategies as st

    def check(per_group, filters, groups, size, positions, planes):
        inputs = {
            "channels": per_group * groups, "filters": filters * groups, "size": size,
            "positions": positions, "groups": groups, "planes": planes,
        }  # fmt: skip
        compare(
            dual.operations, _operations, inputs, _OPERATIONS_MISTAKES, _TOLERANCE, _COUNTED
        )  # fmt: skip

    for inputs in _COUNTED:
        compare(
            dual.operations, _operations, inputs, _OPERATIONS_MISTAKES, _TOLERANCE, _COUNTED
        )  # fmt: skip
    few = st.integers(1, 5)
    for_all(check, per_group=few, filters=few, groups=few, size=few, positions=st.integers(1, 99),
            planes=st.integers(0, 2))  # fmt: skip


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "10.1",
        "depthwise",
        "A convolution in which each channel has a filter of its own and stays alone.",
        "The naive version",
        (depthwise_values, depthwise_dtype),
        (
            "Your `windows` gives C * size * size values at each position. Which of them does the "
            "filter of channel 0 see?",
            "Its last axis is in the order channel, row, column. So reshape it to two axes, C and "
            "size * size, and the values of a channel stand side by side.",
            "Multiply by weight.reshape(C, size * size), which broadcasts over the positions, sum "
            "over the last axis, and bring (N, Ho, Wo, C) into the order (N, C, Ho, Wo).",
        ),
    ),
    Exercise(
        "10.2",
        "three_levels",
        "A weight of -1, 0 or +1, as the mean of two signs, each with its gradient.",
        "Three levels in a weight",
        (levels_values, levels_gradient),
        (
            "Which values does the mean of two signs have?",
            "Your sign_ste is an operation of your engine: its result can be added and multiplied, "
            "and each operation brings its own rule.",
            "Two calls of sign_ste, a sum, and a factor. The sum passes the gradient to both, the "
            "factor makes half of it.",
        ),
    ),
    Exercise(
        "10.3",
        "dual_matmul",
        "The product of signs with weights of three levels, as two products of words.",
        "Two products on words",
        (dual_values, dual_dtype),
        (
            "A weight is (p + q) / 2 for its signs p and q. What is the sum of a * (p + q) / 2?",
            "Your xnor_matmul gives the sum of a * p, and again that of a * q. With k = 3, which "
            "values can each of them have, and which can their sum have?",
            "Both are odd or both are even, so their sum is even, and // 2 is exact. It is not if "
            "each is halved first.",
        ),
    ),
    Exercise(
        "10.4",
        "residual_norm",
        "Batch norm with a shortcut before it and one behind it.",
        "A shortcut in front of the batch norm",
        (residual_values, residual_gradient),
        (
            "x comes in twice. Where?",
            "Your batch_norm takes rows: transpose (N, C, H, W) to (N, H, W, C), then reshape to "
            "(N * H * W, C). Tensors have transpose and reshape.",
            "Normalize the rows of sums + x, reshape to (N, H, W, C), transpose(0, 3, 1, 2), and "
            "add x, the Tensor. Return mean and var as batch_norm gives them.",
        ),
    ),
    Exercise(
        "10.5",
        "operations",
        "How many operations a convolution takes, as papers count them.",
        "Counting operations",
        (operations_values,),
        (
            "How many products does one output value take?",
            "A filter sees channels // groups channels of size * size taps each; there are filters "
            "* positions output values.",
            "That is the number of products, and with planes = 0 the answer. Otherwise each plane "
            "takes that many products of signs, of which 64 count as one operation.",
        ),
    ),
)
