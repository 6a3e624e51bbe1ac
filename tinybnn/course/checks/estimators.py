"""Chapter 02: pseudo-gradients of the sign, a surrogate, and the sign as an operation."""

from __future__ import annotations

import importlib
import itertools
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from tinybnn.course.checks.engine import Formula
from tinybnn.course.exercise import Exercise, Wrong, call, compare, equal, for_all, provided

_TOLERANCE = 1e-5


def engine(module: ModuleType) -> ModuleType:
    """Import the student's engine, beside the module."""
    return importlib.import_module(".engine", module.__package__)


def computed(name: str, answer: Any, tensor: type) -> Any:
    """Return the array in a student's answer, which must be a Tensor of mybnn.engine."""
    if not isinstance(answer, tensor):
        raise Wrong(f"{name} returns a {type(answer).__name__}, expected a Tensor of mybnn.engine")
    return answer.data


def _values():
    """Strategy: small arrays of floats, with many 0 and borders at -1 and 1."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    floats = st.floats(-3, 3, width=32).map(lambda x: round(x, 3))
    numbers = st.sampled_from([-1.0, 0.0, 1.0, 2.0]) | floats
    return arrays(np.float32, st.sampled_from([(1,), (4,), (2, 3)]), elements=numbers)


_PROBE = np.float32([-2, -1, -0.5, 0, 0.25, 1, 3])  # answers of known mistakes differ
_PROBES = [_PROBE, np.float32([[0.75, -0.25], [-1.5, 1.25]]), np.float32([0.5, -0.75, -3, 1.5])]


def _compare_all(function, reference, mistakes, tolerance=_TOLERANCE, **more):
    """Compare on the probe, which distinguishes the mistakes, then on any small arrays."""

    probes = [
        {"x": x, **{name: values[i % len(values)] for name, values in more.items()}}
        for i, x in enumerate(_PROBES)
    ]

    def check(x, **values):
        compare(function, reference, {"x": x, **values}, mistakes, tolerance, probes)

    for inputs in probes:
        check(**inputs)
    from hypothesis import strategies as st

    for_all(check, x=_values(), **{name: st.sampled_from(v) for name, v in more.items()})


def _keeps_dtype(name, **more):
    def check(estimators):
        """float32 stays float32 and float64 stays float64."""
        for dtype, values in itertools.product((np.float32, np.float64), ([-1.5, 0.25], [[0.0]])):
            x = np.array(values, dtype)
            inputs = {"x": x, **more}
            got = np.asarray(call(getattr(estimators, name), inputs)).dtype
            if got != dtype:
                text = f"{name} turns {dtype.__name__} into {got}; convert with .astype(x.dtype)"
                raise Wrong(text, inputs, got, np.dtype(dtype))

    return check


# ------------------------------------------------------------------------------------------- slopes


def _inside(x, slope):
    return np.where(np.abs(x) <= 1, slope, np.float32(0)).astype(x.dtype)


def _ste(x):
    return _inside(x, 1.0)


_STE_MISTAKES = {
    "the gradient is 1 at -1 and at 1 too: the border belongs to the inside, |x| <= 1":
        lambda x: (np.abs(x) < 1).astype(x.dtype),
    "the gradient passes everywhere; where |x| > 1 it must be 0, since the clipped line, whose "
    "slope it is, is flat there": np.ones_like,
    "the gradient passes below -1 as well; the condition is on |x|, not on x":
        (lambda x: (x <= 1).astype(x.dtype), lambda x: (x < 1).astype(x.dtype)),
    "the gradient passes above 1 as well; the condition is on |x|, not on x":
        (lambda x: (x >= -1).astype(x.dtype), lambda x: (x > -1).astype(x.dtype)),
    "1 and 0 depend on the sign of x here; the condition is on its size, |x| <= 1":
        (lambda x: (x >= 0).astype(x.dtype), lambda x: (x > 0).astype(x.dtype)),
    "inside and outside are exchanged: 1 where |x| <= 1, 0 beyond":
        (lambda x: (np.abs(x) > 1).astype(x.dtype), lambda x: (np.abs(x) >= 1).astype(x.dtype)),
    "this is the sign itself; asked for is what stands in for its slope":
        (np.sign, lambda x: _sign(x)),
    "inside it is 1, not x": lambda x: _inside(x, x),
    "this is the true derivative of sign, which is 0 and teaches nothing": np.zeros_like,
    "this is the clipped line itself (the surrogate); asked for is its slope":
        lambda x: np.clip(x, -1, 1),
}  # fmt: skip


def ste_values(estimators: ModuleType) -> None:
    """the gradient is 1 where |x| <= 1, borders included, and 0 beyond."""
    _compare_all(estimators.ste_gradient, _ste, _STE_MISTAKES)


def _approx(x):
    return _inside(x, 2 - 2 * np.abs(x))


_APPROX_MISTAKES = {
    "the factor 2 is missing: the slope is 2 at 0, so that the area below it is 2, the height of "
    "the step from -1 to 1": lambda x: _inside(x, 1 - np.abs(x)),
    "the slope is negative beyond 1; there it must be 0": lambda x: 2 - 2 * np.abs(x),
    "the slope must be the same at x and -x: |x| is missing":
        (lambda x: _inside(x, 2 - 2 * x), lambda x: np.maximum(2 - 2 * x, 0), lambda x: 2 - 2 * x),
    "the slope must fall on both sides of 0; this one is 2 + 2 |x| on one of them":
        lambda x: _inside(x, 2 + 2 * x),
    "this is ste_gradient, a constant inside; the parabola's slope falls as |x| grows": _ste,
    "the slope is not 0 beyond 1": lambda x: np.where(np.abs(x) <= 1, 2 - 2 * np.abs(x), 1),
    "this is the surrogate; asked for is its slope":
        (lambda x: _approx_surrogate(x), lambda x: 2 * x - x * np.abs(x),
         lambda x: _inside(x, 2 * x - x * np.abs(x)), lambda x: 2 * x - x**2,
         lambda x: _inside(x, 2 * x - x**2)),
}  # fmt: skip


def approx_values(estimators: ModuleType) -> None:
    """the gradient is 2 - 2 |x| where |x| <= 1, and 0 beyond."""
    _compare_all(estimators.approx_gradient, _approx, _APPROX_MISTAKES)


def _approx_surrogate(x):
    x = np.clip(x, -1, 1)
    return 2 * x - x * np.abs(x)


def _ends(x, inside, below=-1):
    return np.where(x > 1, 1, np.where(x < -1, below, inside))


_SURROGATE_MISTAKES = {
    "the function is not odd: f(-x) must be -f(x). For negative x the slope is 2 + 2 x, so the "
    "square has the other sign there": lambda x: 2 * np.clip(x, -1, 1) - np.clip(x, -1, 1) ** 2,
    "the constant is wrong: the slope is right, but the function must be 0 at 0, and go from -1 to "
    "1": lambda x: _approx_surrogate(x) + 1,
    "beyond 1 the function stays at sign(x); it does not fall back to 0":
        lambda x: _inside(x, 2 * x - x * np.abs(x)),
    "beyond 1 the function must stay at -1 or 1, where its slope is 0; this one bends back":
        lambda x: 2 * x - x * np.abs(x),
    "this is right for x > 0; below 0 it is mirrored: 2x + x²":
        (lambda x: 2 * x - x**2, lambda x: _ends(x, 2 * x - x**2),
         lambda x: _inside(x, 2 * x - x**2), lambda x: np.clip(2 * x - x**2, -1, 1)),
    "beyond -1 it is -1, not 1": lambda x: _ends(x, 2 * x - x * np.abs(x), below=1),
    "clip x first, then take the formula: beyond 1 the formula bends back, and clipping its values "
    "comes too late": lambda x: np.clip(2 * x - x * np.abs(x), -1, 1),
    "the square of x is halved once too often: the integral of 2 x is x squared":
        lambda x: 2 * np.clip(x, -1, 1) - np.clip(x, -1, 1) * np.abs(np.clip(x, -1, 1)) / 2,
    "this is the clipped line, the surrogate of ste_gradient": lambda x: np.clip(x, -1, 1),
    "this is approx_gradient; asked for is the function whose slope it is":
        (_approx, lambda x: 2 - 2 * np.abs(x)),
}  # fmt: skip


def surrogate_values(estimators: ModuleType) -> None:
    """the surrogate is a parabola on each side of 0 and reaches -1 and 1."""
    _compare_all(estimators.approx_surrogate, _approx_surrogate, _SURROGATE_MISTAKES)


def surrogate_slope(estimators: ModuleType) -> None:
    """the surrogate's slope, by central differences, is the pseudo-gradient."""
    x, h = np.linspace(-1.5, 1.5, 25), 1e-6
    above = np.asarray(call(estimators.approx_surrogate, {"x": x + h}))
    slope = (above - call(estimators.approx_surrogate, {"x": x - h})) / (2 * h)
    if not np.allclose(slope, _approx(x), atol=1e-4):
        raise Wrong("the slope is not the pseudo-gradient", {"x": x}, slope, _approx(x))


def _ede(x, t):
    return max(1 / t, 1) * t * (1 - np.tanh(t * x) ** 2)


_EDE_MISTAKES = {
    "the factor k = max(1 / t, 1) is missing": lambda x, t: t * (1 - np.tanh(t * x) ** 2),
    "k is the smaller of the two instead of the larger: k = max(1 / t, 1)":
        lambda x, t: min(1 / t, 1) * t * (1 - np.tanh(t * x) ** 2),
    "the factor t of the chain rule is missing: the slope of tanh(t x) is t times that of tanh":
        lambda x, t: max(1 / t, 1) * (1 - np.tanh(t * x) ** 2),
    "tanh is taken of x; it must be of t x":
        lambda x, t: max(1 / t, 1) * t * (1 - np.tanh(x) ** 2),
    "the square of tanh is missing": lambda x, t: max(1 / t, 1) * t * (1 - np.tanh(t * x)),
    "this is the function, k tanh(t x); asked for is its slope":
        (lambda x, t: max(1 / t, 1) * np.tanh(t * x), lambda x, t: np.tanh(t * x)),
    "the square belongs to tanh: 1 - tanh(t x)**2":
        (lambda x, t: max(1 / t, 1) * t * (1 - np.tanh(t * x)) ** 2,
         lambda x, t: max(1 / t, 1) * t * (1 - np.tanh(t * x**2)),
         lambda x, t: max(1 / t, 1) * t * (1 - np.tanh((t * x) ** 2))),
}  # fmt: skip


def ede_values(estimators: ModuleType) -> None:
    """the gradient is the slope of k tanh(t x), for flat and for steep t."""
    _compare_all(estimators.ede_gradient, _ede, _EDE_MISTAKES, t=[0.5, 0.1, 2.0, 10.0])


# ---------------------------------------------------------------------------------- the operation


def _sign(x):
    return np.where(x >= 0, x.dtype.type(1), x.dtype.type(-1))


_SIGN_MISTAKES = {
    "sign(0) is 0 here, as in np.sign; it must be +1": np.sign,
    "sign(0) is -1 here; it must be +1, so compare with >=": lambda x: np.where(x > 0, 1, -1),
    "the forward pass computes the clipped line; the network must compute with the sign, only "
    "the gradient is the line's": lambda x: np.clip(x, -1, 1),
}  # fmt: skip


def sign_forward(estimators: ModuleType) -> None:
    """the forward pass computes the sign, and sign(0) is +1."""
    tensor = engine(estimators).Tensor

    def sign_ste(x):
        return computed("sign_ste", _operation(estimators, tensor(x)), tensor)

    _compare_all(sign_ste, _sign, _SIGN_MISTAKES, tolerance=0)


def _operation(estimators, x, *gradient):
    """Call the student's sign_ste of a Tensor, whose data it must not change."""
    before = x.data.copy()
    try:
        result = estimators.sign_ste(x, *gradient)
    except TypeError as error:
        if "'Tensor' object is not iterable" in str(error):
            raise Wrong("parents is a tuple, also of one: (x,)", cause=error) from error
        raise
    if not equal(x.data, before):
        raise Wrong(
            "sign_ste writes into x.data; the input keeps its values, since the rule needs them",
            {"x": before}, x.data, before,
        )  # fmt: skip
    return result


_GRADIENT_MISTAKES = {
    "the incoming gradient is forgotten: the rule must return grad times the factor":
        lambda x, grad, gradient: gradient(x),
    "the factor is forgotten: the incoming gradient passes everywhere":
        lambda x, grad, gradient: grad,
    "the argument `gradient` is not used: the factor is always ste_gradient's":
        lambda x, grad, gradient: grad * _ste(x),
    "the factor is that of the signs; it must be that of x, the input":
        lambda x, grad, gradient: grad * gradient(_sign(x)),
    "this is the true derivative of sign, which is 0": lambda x, grad, gradient: 0 * grad,
    "the factor is taken of grad; it is that of x":
        (lambda x, grad, gradient: gradient(grad), lambda x, grad, gradient: grad * gradient(grad)),
    "there is a factor sign(x) too many; the rule returns grad times gradient(x.data)":
        lambda x, grad, gradient: grad * _sign(x) * gradient(x),
}  # fmt: skip


def _gradient(estimators):
    """Make the rule a function of the input, the incoming gradient and the factor."""
    tensor = engine(estimators).Tensor

    def sign_ste(x, grad, gradient):
        given = tensor(x)
        result = _operation(estimators, given, gradient)
        computed("sign_ste", result, tensor)
        if len(result.parents) != 1 or result.parents[0] is not given or result.rule is None:
            raise Wrong(
                "the result does not remember what it was computed from: "
                "return Tensor(signs, (x,), rule), where x is the Tensor"
            )
        before = grad.copy()
        try:
            answer = result.rule(grad)
        except TypeError as error:
            if "required positional argument" in str(error):
                text = "the rule takes grad alone; x is known inside of sign_ste"
                raise Wrong(text, cause=error) from error
            raise
        if not equal(grad, before):
            raise Wrong("the rule writes into grad; make a new array", {"grad": before})
        if answer is None:
            raise Wrong("the rule returns None: is a return missing?", {"grad": grad})
        if not isinstance(answer, tuple | list) or len(answer) != 1:
            raise Wrong(
                "the rule must return a tuple with one array, for the one parent: (array,)",
                {"grad": grad}, answer,
            )  # fmt: skip
        return np.asarray(answer[0])

    return sign_ste


def sign_gradient(estimators: ModuleType) -> None:
    """the rule returns the incoming gradient times the pseudo-gradient of the input."""
    function = _gradient(estimators)

    def inputs(x):
        return {"x": x, "grad": _incoming(x), "gradient": _COSH}

    def check(x):
        probes = [inputs(x) for x in _PROBES]
        compare(function, _product, inputs(x), _GRADIENT_MISTAKES, _TOLERANCE, probes)

    check(_PROBE)
    for_all(check, x=_values())


def sign_default(estimators: ModuleType) -> None:
    """without the argument `gradient` the estimator is the straight-through one."""
    if estimators.sign_ste.__defaults__ == (estimators.ste_gradient,):
        return
    given = engine(estimators).Tensor(_PROBE)
    with mock.patch.object(estimators, "ste_gradient", _ste):
        got = np.asarray(estimators.sign_ste(given).rule(_incoming(_PROBE))[0])
    if not equal(got, wanted := _incoming(_PROBE) * _ste(_PROBE), _TOLERANCE):
        raise Wrong("the default of `gradient` is not ste_gradient", {"x": _PROBE}, got, wanted)


_COSH = Formula("np.cosh (any function may be given)", np.cosh)


def _incoming(x):
    return np.arange(2, x.size + 2, dtype=np.float32).reshape(x.shape)


def _product(x, grad, gradient):
    return grad * gradient(x)


def sign_dtype(estimators: ModuleType) -> None:
    """float32 stays float32 and float64 stays float64."""
    tensor, kinds = engine(estimators).Tensor, []

    class Recorded(tensor):
        def __init__(self, data, *more, **named):
            kinds.append(np.asarray(data).dtype.kind)
            super().__init__(data, *more, **named)

    Recorded.__name__ = Recorded.__qualname__ = "Tensor"
    for dtype in (np.float32, np.float64):
        x = np.array([-1.5, 0.25], dtype)
        with provided(estimators, Tensor=Recorded):
            got = call(lambda x: estimators.sign_ste(Recorded(x)), {"x": x}).dtype
        if got != dtype:
            why = ": a Tensor makes float32 of integers" if kinds[-1] != "f" else ""
            text = (
                f"sign_ste turns {dtype.__name__} into {got}{why}; convert the signs with "
                ".astype(x.dtype)"
            )
            raise Wrong(text, {"x": x}, got, np.dtype(dtype))


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "02.1",
        "ste_gradient",
        "The straight-through estimator: 1 where |x| <= 1, else 0.",
        "The straight-through estimator",
        (ste_values, _keeps_dtype("ste_gradient")),
        (
            "Which of -1.5, -1, 0.3, 1 and 2 let the gradient through?",
            "A comparison gives an array of bools, True where the condition holds.",
            "Compare np.abs(x) with 1, border included; .astype(x.dtype) makes numbers of bools.",
        ),
    ),
    Exercise(
        "02.2",
        "approx_gradient",
        "The pseudo-gradient of Bi-Real Net: 2 - 2 |x| where |x| <= 1, else 0.",
        "Other estimators",
        (approx_values, _keeps_dtype("approx_gradient")),
        (
            "Draw it: a tent with its top at x = 0. How high is it, and where does it end?",
            "np.where(condition, inside, 0) chooses element by element.",
            "The condition is that of 02.1. Inside stands 2 - 2 * np.abs(x); mind the dtype.",
        ),
    ),
    Exercise(
        "02.3",
        "approx_surrogate",
        "The function whose slope is 2 - 2 |x| inside, and which is -1 and +1 beyond.",
        "Other estimators",
        (surrogate_values, surrogate_slope, _keeps_dtype("approx_surrogate")),
        (
            "Integrate 2 - 2 x from 0 to x, for x between 0 and 1. What is the value at 1?",
            "For negative x the slope is 2 + 2 x. The function is odd: f(-x) = -f(x).",
            "Clip x to [-1, 1] first; then one formula with x and |x| serves both sides, and it is "
            "1 at 1 and -1 at -1.",
        ),
    ),
    Exercise(
        "02.4",
        "sign_ste",
        "sign(x) as an operation of your engine: the sign forward, a pseudo-gradient backward.",
        "An operation with a rule of its own",
        (sign_forward, sign_gradient, sign_default, sign_dtype),
        (
            "Look at relu in engine.py: a Tensor is made of data, parents and a rule.",
            "The rule gets the gradient of the result and returns a tuple with one array: that "
            "gradient times a factor for each element.",
            "The factor is gradient(x.data), of the input, not of the signs. Return "
            "Tensor(signs, (x,), rule).",
        ),
    ),
    Exercise(
        "02.5",
        "ede_gradient",
        "The pseudo-gradient of IR-Net: k t (1 - tanh(t x)**2) with k = max(1 / t, 1).",
        "Other estimators",
        (ede_values, _keeps_dtype("ede_gradient", t=2.0)),
        (
            "Write down the derivative of k tanh(t x) by the chain rule.",
            "The derivative of tanh(z) is 1 - tanh(z)**2; the inner derivative is t.",
            "Compute k with Python's max, then one line with np.tanh(t * x).",
        ),
    ),
)
