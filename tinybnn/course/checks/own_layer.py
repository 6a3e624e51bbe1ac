"""Chapter 12: an estimator, a Function, a layer and a packed operation that extend tinybnn."""

from __future__ import annotations

import contextlib
from types import ModuleType

import numpy as np

import tinybnn as tb
from tinybnn import deploy, nn, optim, quantizers, testing
from tinybnn.course.exercise import Exercise, Wrong, call, compare, equal, for_all
from tinybnn.deploy.values import BITS, FLOAT, SUMS, Value

_TOLERANCE = 1e-5
_SECONDS = 120.0  # a first run compiles kernels of tinybnn


# --------------------------------------------------------------------------------- right versions


def _forward(self, x, offset):
    rows = (x + offset).reshape(len(x), -1, 3)
    middle = np.argsort(rows, axis=2, kind="stable")[:, :, 1:2]
    self.chosen = (np.arange(3) == middle).astype(x.dtype)
    return np.take_along_axis(rows, middle, axis=2)[:, :, 0]


def _backward(self, grad, output, x, offset):
    to_x = (grad.reshape(*grad.shape, 1) * self.chosen).reshape(x.shape)
    return to_x, to_x.sum(0)


def _shape(x, *, offset):
    if len(x.shape) != 1 or x.shape[0] % 3 or offset.shape != x.shape:
        raise ValueError(f"shapes {x.shape} and {offset.shape} do not fit")
    return Value(FLOAT, (x.shape[0] // 3,), x.single)


def _of_call(cls, call):
    offset = call.constant(1)
    if offset is None:
        raise deploy.NoPackedFormError("its offset depends on the input")
    return {"offset": offset}, {}


@contextlib.contextmanager
def _methods(cls, **methods):
    """Context: methods of the student's class replaced by right ones, in the class itself.

    The packed form of a Function is found by its class, so a copy of the class would not do.
    """
    before = {name: vars(cls)[name] for name in methods if name in vars(cls)}
    for name, method in methods.items():
        setattr(cls, name, method)
    try:
        yield
    finally:
        for name in methods:
            delattr(cls, name)
        for name, method in before.items():
            setattr(cls, name, method)


def _right_function(own_layer):
    return _methods(own_layer.MiddleOfThree, forward=_forward, backward=_backward)


def _right_operation(own_layer):
    return _methods(
        own_layer.MiddleOfThreeOperation,
        shape=staticmethod(_shape),
        of_call=classmethod(_of_call),
    )


# ------------------------------------------------------------------------------------ an estimator

_PROBE = np.float32([-2, -1, -0.5, -0.0, 0, 0.25, 1, 3])
_PROBES = [{"x": _PROBE}, {"x": np.float32([[0.75, -0.25], [-1.5, 1.25]])}]


def _inside(x, values, outside=0.0):
    return np.where(np.abs(x) <= 1, values, outside).astype(x.dtype)


def _sign(x):
    return np.where(x >= 0, 1, -1).astype(x.dtype)


def _slope(x):
    return _inside(x, np.pi / 2 * np.cos(np.pi / 2 * x))


def _sine(x):
    return np.sin(np.pi / 2 * np.clip(x, -1, 1))


_FORWARD_MISTAKES = {
    "sign(0) must be +1, as everywhere in tinybnn: a packed model has no third value": (
        np.sign, lambda x: np.where(x > 0, 1, -1), lambda x: np.where(x > 0, 1, np.sign(x)),
    ),
    "forward returns the surrogate; the network computes with signs, and only the gradient follows "
    "the surrogate": (_sine, lambda x: np.sin(np.pi / 2 * x)),
    "forward returns bits; it must return +1 and -1": lambda x: (x >= 0).astype(x.dtype),
}  # fmt: skip
_SLOPE_MISTAKES = {
    "the factor pi / 2 is missing: it is the inner derivative of sin(pi x / 2)":
        lambda x: _inside(x, np.cos(np.pi / 2 * x)),
    "the slope is not 0 beyond 1, where the surrogate is constant":
        lambda x: np.pi / 2 * np.cos(np.pi / 2 * x),
    "this is the slope of sin(pi x); the surrogate is sin(pi x / 2), which rises up to x = 1":
        lambda x: _inside(x, np.pi * np.cos(np.pi * x)),
    "the inner derivative is pi / 2, but the cosine has its own argument, pi x / 2":
        (lambda x: _inside(x, np.pi / 2 * np.cos(x)), lambda x: _inside(x, np.cos(x))),
    "this is the surrogate; asked for is its slope":
        (_sine, lambda x: _inside(x, np.sin(np.pi / 2 * x))),
    "this is the slope of the straight-through estimator, a constant inside":
        lambda x: _inside(x, 1.0),
    "the slope of a sine is a cosine, with a plus": lambda x: -_slope(x),
}  # fmt: skip
_SURROGATE_MISTAKES = {
    "beyond 1 the sine goes down again; clamp x to [-1, 1] first": lambda x: np.sin(np.pi / 2 * x),
    "beyond 1 the surrogate is the sign, not 0": lambda x: _inside(x, np.sin(np.pi / 2 * x)),
    "the sine is of pi x / 2, so that it reaches 1 at x = 1": (
        lambda x: np.sin(np.clip(x, -1, 1)), lambda x: np.sin(np.pi * np.clip(x, -1, 1)),
    ),
    "this is the clipped line, the surrogate of the straight-through estimator":
        lambda x: np.clip(x, -1, 1),
    "this is the pseudo-gradient; asked for is the function of which it is the slope": _slope,
}  # fmt: skip


def _floats():
    """Small arrays of floats, in which 0 and the borders at -1 and 1 are frequent."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    floats = st.floats(-3, 3, width=32).map(lambda x: round(x, 3))
    numbers = st.sampled_from([-1.0, 0.0, 1.0, 2.0]) | floats
    return arrays(np.float32, st.sampled_from([(1,), (4,), (2, 3)]), elements=numbers)


def _method(name, reference, mistakes):
    """Compare a method of SineSign with its formula, on the probes and on any small arrays."""

    def check(own_layer):
        method = getattr(own_layer.SineSign(), name)

        def one(x):
            compare(method, reference, {"x": x}, mistakes, _TOLERANCE, _PROBES)

        for inputs in _PROBES:
            one(**inputs)
        for_all(one, x=_floats())

    return check


def estimator_forward(own_layer: ModuleType) -> None:
    """forward is +1 where x >= 0, and -1 elsewhere."""
    _method("forward", _sign, _FORWARD_MISTAKES)(own_layer)


def estimator_slope(own_layer: ModuleType) -> None:
    """the pseudo-gradient is the slope of the sine inside, and 0 beyond."""
    _method("pseudo_gradient", _slope, _SLOPE_MISTAKES)(own_layer)


def estimator_surrogate(own_layer: ModuleType) -> None:
    """the surrogate is the sine inside, and the sign beyond."""
    _method("surrogate", _sine, _SURROGATE_MISTAKES)(own_layer)


def estimator_dtype(own_layer: ModuleType) -> None:
    """the three methods keep float32 and float64."""
    for dtype in (np.float32, np.float64):
        x = np.array([-1.5, 0.25], dtype)
        for name in ("forward", "pseudo_gradient", "surrogate"):
            got = np.asarray(call(getattr(own_layer.SineSign(), name), {"x": x})).dtype
            if got != dtype:
                text = f"{name} turns {dtype.__name__} into {got}; convert with .astype(x.dtype)"
                raise Wrong(text, {"x": x}, got, np.dtype(dtype))


def estimator_in_tinybnn(own_layer: ModuleType) -> None:
    """tinybnn's gradcheck accepts the pseudo-gradient as the slope of the surrogate."""
    estimator, x = own_layer.SineSign(), np.array([-1.7, -0.6, 0.2, 0.9, 2.5])
    try:
        testing.gradcheck(estimator, x, surrogate=estimator.surrogate)
    except AssertionError as error:
        raise Wrong(f"gradcheck says: {error}", {"x": x}) from None

    def surrogate(x):
        return estimator.surrogate(tb.Tensor(x))

    answer = call(surrogate, {"x": x})
    if not isinstance(answer, tb.Tensor):
        raise Wrong(
            "surrogate makes an array of a Tensor; with tb.clamp and tb.sin it returns a Tensor",
            got=answer,
        )


# -------------------------------------------------------------------------------------- a Function


def _columns(choose):
    """x, offset -> the result of `choose` for the rows (N, M, 3) of x + offset."""
    return lambda x, offset: choose((x + offset).reshape(len(x), -1, 3))


def _middle(rows):
    return np.sort(rows, axis=2)[:, :, 1]


_X = np.float32([[3, 1, 2, 7, 9, 8], [5, 4, 6, -1, 0, 2]])
_OFFSET = np.float32([0, 0.5, 4, 0, -3, 1])
_FUNCTION_PROBES = [
    {"x": _X, "offset": _OFFSET},
    {"x": np.float32([[2, -3, 8, 1, 0, 4, 4, 5, -2]]), "offset": np.float32([1] * 4 + [-2] * 5)},
]
_VALUE_MISTAKES = {
    "this is the largest of the three; asked for is the middle one": _columns(lambda r: r.max(2)),
    "this is the smallest of the three; asked for is the middle one": _columns(lambda r: r.min(2)),
    "this is the mean of the three; asked for is the middle one": _columns(lambda r: r.mean(2)),
    "this is the second number of each three, whatever its size": _columns(lambda r: r[:, :, 1]),
    "the offset is not added": lambda x, offset: _columns(_middle)(x, 0 * offset),
    "the offset is subtracted": lambda x, offset: _columns(_middle)(x, -offset),
    "the number chosen is returned without its offset": lambda x, offset: np.take_along_axis(
        x.reshape(len(x), -1, 3),
        np.argsort((x + offset).reshape(len(x), -1, 3), axis=2, kind="stable")[:, :, 1:2], 2,
    )[:, :, 0],
    "three numbers that belong together are M apart here; they must be neighbours: "
    "reshape(len(x), -1, 3)":
        lambda x, offset: np.sort((x + offset).reshape(len(x), 3, -1), axis=1)[:, 1],
}  # fmt: skip


def _triples():
    """x (N, 3 M) and offset (3 M,), of few different values, so that equal ones are frequent."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    def of(size):
        n, m = size
        numbers = st.integers(-3, 3).map(float)
        return st.tuples(
            arrays(np.float32, (n, 3 * m), elements=numbers),
            arrays(np.float32, (3 * m,), elements=numbers),
        )

    return st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(of)


def middle_values(own_layer: ModuleType) -> None:
    """the middle one of each three neighbours of x + offset is chosen."""

    def forward(x, offset):
        return own_layer.MiddleOfThree.apply(x, offset)

    def check(arrays):
        inputs = dict(zip(("x", "offset"), arrays, strict=True))
        compare(forward, _columns(_middle), inputs, _VALUE_MISTAKES, 0.0, _FUNCTION_PROBES)

    check(_FUNCTION_PROBES[0].values())
    for_all(check, arrays=_triples())
    got = call(forward, {"x": _X, "offset": _OFFSET}).dtype
    if got != np.float32:
        raise Wrong(f"forward turns float32 into {got}", {"x": _X}, got, np.dtype(np.float32))


def _gradients(backward):
    """x, offset, grad -> both gradients, where `backward` computes that of x from the masks."""

    def gradients(x, offset, grad):
        rows = (x + offset).reshape(len(x), -1, 3)
        chosen = np.arange(3) == np.argsort(rows, axis=2, kind="stable")[:, :, 1:2]
        to_x = backward(rows, chosen, grad[:, :, None]).reshape(x.shape).astype(x.dtype)
        return to_x, to_x.sum(0)

    return gradients


_GRADIENT_PROBES = [
    {**inputs, "grad": np.arange(2, 2 + inputs["x"].size // 3, dtype=np.float32).reshape(
        len(inputs["x"]), -1)}
    for inputs in (
        *_FUNCTION_PROBES, {"x": np.float32([[1, 1, 2, 3, 3, 3]]), "offset": 0 * _OFFSET},
    )
]  # fmt: skip
_GRADIENT_MISTAKES = {
    "the incoming gradient is not used: multiply by grad (chain rule)":
        _gradients(lambda rows, chosen, grad: 1.0 * chosen),
    "each of the three gets the gradient; only the chosen one does, since the others do not reach "
    "the result": _gradients(lambda rows, chosen, grad: grad * np.ones_like(rows)),
    "each of the three gets a third of the gradient, as with a mean; only the chosen one gets it":
        _gradients(lambda rows, chosen, grad: grad * np.ones_like(rows) / 3),
    "the largest gets the gradient; the chosen one is the middle one":
        _gradients(lambda rows, chosen, grad: grad * (rows == rows.max(2, keepdims=True))),
    "where numbers are equal, several get the whole gradient; only one of them was chosen":
        _gradients(lambda rows, chosen, grad: grad * (rows == np.sort(rows, 2)[:, :, 1:2])),
}  # fmt: skip


_SUMMED = (
    "one offset serves all samples, so its gradient is the sum over axis 0 of the gradient of x"
)


def middle_gradients(own_layer: ModuleType) -> None:
    """the chosen number gets the gradient, also where numbers are equal; the offset sums it."""
    right = _gradients(lambda rows, chosen, grad: grad * chosen)

    def backward(x, offset, grad):
        tensors = [tb.Tensor(a, requires_grad=True) for a in (x, offset)]
        own_layer.MiddleOfThree.apply(*tensors).backward(grad)
        return tuple(None if t.grad is None else t.grad.data for t in tensors)

    def check(arrays):
        x, offset = arrays
        grad = np.arange(2, 2 + x.size // 3, dtype=np.float32).reshape(len(x), -1)
        inputs = {"x": x, "offset": offset, "grad": grad}
        try:
            got, expected = call(backward, inputs), right(**inputs)
        except Wrong as wrong:
            if "gradient of input 1" in str(wrong.cause):
                raise Wrong(f"{wrong.cause}; {_SUMMED}", inputs) from None
            raise
        if got[0] is not None and equal(got[0], expected[0]) and not equal(got[1], expected[1]):
            why = f"the gradient of x is right, that of offset is not: {_SUMMED}"
            raise Wrong(why, inputs, got[1], expected[1])
        compare(backward, right, inputs, _GRADIENT_MISTAKES, _TOLERANCE, _GRADIENT_PROBES,
                ("the gradient of x", "the gradient of offset"))  # fmt: skip

    for probe in _GRADIENT_PROBES:
        check((probe["x"], probe["offset"]))
    for_all(check, arrays=_triples())


def middle_differentiable(own_layer: ModuleType) -> None:
    """the rule works on Tensors too, so that its gradient has a gradient."""
    rng = np.random.default_rng(0)
    x, offset = rng.permutation(12).reshape(2, 6) + 0.5, rng.normal(size=6) / 10
    function = own_layer.MiddleOfThree.apply
    try:
        testing.gradcheck(function, [x, offset])
        testing.gradgradcheck(function, [x, offset])
    except (AssertionError, RuntimeError, TypeError, AttributeError) as error:
        raise Wrong(
            f"backward does not work on Tensors: {error}. It may use operators, .reshape and .sum; "
            "NumPy functions take arrays only",
            cause=error,
        ) from None


# ----------------------------------------------------------------------------------------- a layer


def _layer(own_layer, seed=0, **more):
    return own_layer.BinaryVote(5, 2, np.random.default_rng(seed), **more)


def layer_parameters(own_layer: ModuleType) -> None:
    """weight is a LatentParameter from rng, offset a Parameter of zeros."""
    layer = _layer(own_layer)
    found = dict(layer.named_parameters())
    wanted = {"weight": (nn.LatentParameter, (6, 5)), "offset": (nn.Parameter, (6,))}
    for name, (cls, shape) in wanted.items():
        value = getattr(layer, name, None)
        if value is None:
            raise Wrong(f"the layer has no attribute {name}")
        if name not in found:
            raise Wrong(
                f"{name} is a {type(value).__name__}, which no optimizer sees; make it an "
                f"nn.{cls.__name__}"
            )
        if not isinstance(value, cls):
            raise Wrong(
                f"{name} is a {type(value).__name__}: its values would leave [-1, 1], where the "
                "estimator passes no gradient back. An nn.LatentParameter is clipped by the "
                "optimizer after each step"
            )
        if value.shape != shape:
            raise Wrong(
                f"{name} has the shape {value.shape}, expected {shape}: three products for each of "
                "2 outputs, from 5 inputs"
            )
        if value.dtype != np.float32:
            raise Wrong(f"{name} is {value.dtype}; a packed model needs float32: .astype(...)")
    weight = layer.weight.data
    if np.abs(weight).max() > 1 or weight.min() > -0.1 or weight.max() < 0.1:
        raise Wrong("weight must be uniform between -1 and 1", got=weight)
    if layer.offset.data.any():
        raise Wrong("offset must be 0 at first", got=layer.offset.data)
    same, other = _layer(own_layer).weight.data, _layer(own_layer, 1).weight.data
    if not equal(same, weight) or equal(other, weight):
        raise Wrong("the weights must come from rng: rng.uniform(-1, 1, shape)")


def _answers(x, weight, offset):
    return _columns(_middle)(x @ weight.T, offset)


_LAYER_MISTAKES = {
    "the layer computes with the latent weights; quantize them: self.quantizer(self.weight)":
        lambda x, weight, offset: _answers(_sign(x), weight, offset),
    "the layer computes with x itself; quantize it: self.quantizer(x)":
        lambda x, weight, offset: _answers(x, _sign(weight), offset),
    "neither x nor the weight is quantized": _answers,
    "the offset is not used":
        lambda x, weight, offset: _answers(_sign(x), _sign(weight), 0 * offset),
    "MiddleOfThree is missing: these are all the products":
        lambda x, weight, offset: _sign(x) @ _sign(weight).T + offset,
}  # fmt: skip


def layer_values(own_layer: ModuleType) -> None:
    """forward computes MiddleOfThree of the products of signs, and the offset."""
    rng = np.random.default_rng(3)

    def forward(x, weight, offset):
        layer = _layer(own_layer)
        layer.weight.data[...], layer.offset.data[...] = weight, offset
        answer = layer(tb.Tensor(x))
        if not isinstance(answer, tb.Tensor):
            raise Wrong(
                f"forward must return a Tensor, got {type(answer).__name__}: call "
                "MiddleOfThree.apply with Tensors; an array, such as .data, has no gradient"
            )
        return answer.data

    def inputs():
        x, weight = rng.normal(size=(3, 5)), rng.uniform(-1, 1, (6, 5))
        offset = rng.integers(-2, 3, 6) / 4
        x[0, 0] = 0.0
        values = (x, weight, offset)
        return dict(zip(("x", "weight", "offset"), map(np.float32, values), strict=True))

    def right(x, weight, offset):
        return _answers(_sign(x), _sign(weight), offset)

    probes = [inputs() for _ in range(3)]
    with _right_function(own_layer):
        for one in probes:
            compare(forward, right, one, _LAYER_MISTAKES, _TOLERANCE, probes)


def layer_learns(own_layer: ModuleType) -> None:
    """the given quantizer passes the gradient to x and to the weight, and a step clips it."""
    rng = np.random.default_rng(5)
    layer = _layer(own_layer, quantizer=quantizers.SteSign(0.5))
    layer.weight.data[...] = rng.uniform(-0.45, 0.45, layer.weight.shape)
    x = tb.Tensor(rng.uniform(-0.9, 0.9, (8, 5)).astype(np.float32), requires_grad=True)
    with _right_function(own_layer):
        (layer(x) ** 2).sum().backward()
    for name, tensor in (("x", x), ("weight", layer.weight)):
        if tensor.grad is None or not np.any(tensor.grad.data):
            raise Wrong(
                f"no gradient reaches {name}: np.sign and quantizers.sign have none; call the "
                f"quantizer, which has an estimator"
            )
    outside = np.abs(x.data) > 0.5
    if np.any(x.grad.data[outside]):
        raise Wrong(
            "the layer does not use the quantizer that it was given; keep it in __init__, and call "
            "self.quantizer"
        )
    optim.Adam(layer.parameters(), lr=5.0).step()
    if np.abs(layer.weight.data).max() > 1:
        raise Wrong("after a step of Adam, weights lie beyond 1", got=layer.weight.data)


def layer_compiles(own_layer: ModuleType) -> None:
    """the products of signs become one product of bits in a packed model."""
    with _right_function(own_layer), _right_operation(own_layer):
        try:
            packed = deploy.compile(nn.Sequential(_layer(own_layer)), (5,))
        except deploy.CompileError as error:
            raise Wrong(
                f"deploy.compile refuses the layer: {error}. F.linear(x, weight) is the product "
                "that it knows"
            ) from None
    steps = [step.operation for step in packed.steps]
    if "xnor_linear" not in steps:
        raise Wrong(
            "the packed layer has no product of bits, xnor_linear: F.linear(signs, signs) is the "
            "product that the compiler knows",
            got=steps,
        )


# ---------------------------------------------------------------------------------- its packed form


def _value_of(own_layer):
    def shape(x, offset):
        return own_layer.MiddleOfThreeOperation.shape(x, offset=offset)

    return shape


def _zeros(*shape):
    return np.zeros(shape, np.float32)


_SHAPE_MISTAKES = {
    "the result is said to have the shape of the input; each three numbers give one":
        lambda x, offset: x,
    "shape returns a tuple; asked for is a Value, such as Value(FLOAT, (4,), x.single)":
        (lambda x, offset: (x.shape[0] // 3,), lambda x, offset: (x.shape[0] / 3,)),
    "the number of features is a float; divide with //":
        lambda x, offset: Value(FLOAT, (x.shape[0] / 3,), x.single),
    "the kind is that of integer sums; with an offset they are floats: FLOAT":
        lambda x, offset: Value(SUMS, (x.shape[0] // 3,), x.single),
    "the kind is that of bits; the middle one is a float: FLOAT":
        lambda x, offset: Value(BITS, (x.shape[0] // 3,), x.single),
    "`single` is lost: pass on x.single, as the third argument of Value":
        lambda x, offset: Value(FLOAT, (x.shape[0] // 3,)),
    "the shape includes a batch axis; it is that of one sample":
        (lambda x, offset: Value(FLOAT, (1, x.shape[0] // 3), x.single),
         lambda x, offset: Value(FLOAT, (len(x.shape), x.shape[0] // 3), x.single)),
}  # fmt: skip


def operation_shape(own_layer: ModuleType) -> None:
    """three M features become M floats, for one sample or for the whole batch."""
    function = _value_of(own_layer)
    cases = [(Value(FLOAT, (n,), single), n) for n in (3, 12, 96) for single in (False, True)]
    probes = [{"x": x, "offset": _zeros(n)} for x, n in cases]

    def exact(x, offset):
        value = call(function, {"x": x, "offset": offset})
        known = _SHAPE_MISTAKES.items()
        if value == (right := _shape(x, offset=offset)) and _is_int(value.shape[0]):
            return
        answers = [function(**probe) for probe in probes]
        why = [
            text for text, mistaken in known
            for one in (mistaken if isinstance(mistaken, tuple) else (mistaken,))
            if repr([one(**probe) for probe in probes]) == repr(answers)
        ]  # fmt: skip
        raise Wrong(
            why[0] if why else "shape does not describe the result",
            {"x": x, "offset": offset}, value, right,
        )  # fmt: skip

    for probe in probes:
        exact(**probe)


def _is_int(number):
    return type(number) is int


_REFUSED = (
    ("10 features, no multiple of three,", (10,), (10,)),
    ("an image", (3, 4, 4), (3, 4, 4)),
    ("an offset of another length", (12,), (4,)),
    ("an offset of one number", (12,), (1,)),
)


def operation_refuses(own_layer: ModuleType) -> None:
    """shapes that do not fit raise a ValueError."""
    for what, shape, offset in _REFUSED:
        inputs = {"x": Value(FLOAT, shape), "offset": _zeros(*offset)}
        advice = (
            "a model may come from a damaged file, so `shape` checks what it gets and raises a "
            "ValueError that says what was expected and what was given"
        )
        try:
            got = _value_of(own_layer)(**inputs)
        except ValueError:
            continue
        except NotImplementedError:
            raise
        except Exception as error:
            text = f"{what} raises {type(error).__name__}, expected a ValueError: {advice}"
            raise Wrong(text, inputs, cause=error) from None
        raise Wrong(f"{what} is accepted: {advice}", inputs, got, wanted="a ValueError")


def _traced(offset):
    """A call of MiddleOfThree in a trace, whose offset is an array, or None if it depends on x."""
    inputs = (tb.Tensor(_zeros(2, 6)), tb.Tensor(_zeros(6) if offset is None else offset))
    results = 2 if offset is None else 1
    return deploy.TracedCall(
        inputs, {}, tb.Tensor(_zeros(2, 2)), lambda i: offset if i == 1 else None, results
    )


def operation_of_call(own_layer: ModuleType) -> None:
    """the offset of a traced call becomes the array of the operation, or is refused."""
    operation = own_layer.MiddleOfThreeOperation
    for offset in (_OFFSET, _OFFSET[::-1].copy()):
        try:
            got = call(operation.of_call, {"call": _traced(offset)})
        except Wrong as wrong:
            if isinstance(wrong.cause, deploy.NoPackedFormError):
                why = (
                    "an offset with fixed values is refused: it is call.constant(1), input 1 of "
                    "the call (input 0 is x, which depends on the model's input)"
                )
                raise Wrong(why, cause=wrong.cause) from None
            raise
        parts = isinstance(got, tuple) and len(got) == 2 and all(isinstance(g, dict) for g in got)
        if not parts:
            raise Wrong(
                "of_call must return two dicts, the arrays and the settings: {'offset': ...}, {}",
                got=got,
            )
        arrays, settings = got
        if settings or set(arrays) != {"offset"}:
            raise Wrong(
                "the arrays must be {'offset': ...}, under the name in `arrays`, and the settings "
                "{}", got=got,
            )  # fmt: skip
        if isinstance(arrays["offset"], tb.Tensor):
            raise Wrong(
                "the offset is a Tensor; a packed model holds arrays: call.constant(1) is one"
            )
        if not equal(arrays["offset"], offset):
            raise Wrong(
                "the array is not the offset; call.constant(1) is input 1 of the call",
                {}, arrays["offset"], offset,
            )  # fmt: skip
    try:
        got = operation.of_call(_traced(None))
    except deploy.NoPackedFormError as error:
        if not str(error):
            raise Wrong(
                "NoPackedFormError needs a sentence: it is all that the user of the model reads"
            ) from None
        return
    except Exception as error:
        raise Wrong(
            f"where the offset depends on the input of_call raises {type(error).__name__}; raise a "
            "deploy.NoPackedFormError, to which the compiler adds the name of the layer",
            cause=error,
        ) from None
    raise Wrong(
        "an offset that depends on the model's input has no fixed values (call.constant(1) is "
        "None), so the call must be refused: raise deploy.NoPackedFormError(\"...\")",
        {}, got, wanted="a NoPackedFormError",
    )  # fmt: skip


class _Layer(nn.Module):
    """Products of signs, then the student's Function."""

    def __init__(self, function, in_features, out_features, rng):
        self.function = function
        self.product = nn.BinaryLinear(in_features, 3 * out_features, rng=rng)
        self.offset = nn.Parameter((rng.integers(-4, 5, 3 * out_features) / 2).astype(np.float32))

    def forward(self, x):
        return self.function.apply(self.product(x), self.offset)


def operation_exact(own_layer: ModuleType) -> None:
    """a packed network equals the float network bit by bit, also after it was saved and loaded."""
    rng = np.random.default_rng(1)
    with _right_function(own_layer):
        model = nn.Sequential(
            _Layer(own_layer.MiddleOfThree, 20, 16, rng), nn.BatchNorm1d(16),
            _Layer(own_layer.MiddleOfThree, 16, 4, rng),
        ).eval()  # fmt: skip
        try:
            packed = testing.check_packed(testing.randomize(model, rng), (20,))
        except (AssertionError, deploy.CompileError, ValueError) as error:
            raise Wrong(f"testing.check_packed says: {error}", cause=error) from None
    steps = [step.operation for step in packed.steps]
    if steps.count("middle_of_three") != 2:
        raise Wrong(
            "the packed network does not use the operation: its `functions` must hold "
            "MiddleOfThree, and its name must be middle_of_three", got=steps,
        )  # fmt: skip


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "12.1",
        "SineSign",
        "An estimator: the sign forward, the slope of sin(pi x / 2) backward.",
        "An estimator of your own",
        (
            estimator_forward, estimator_slope, estimator_surrogate, estimator_dtype,
            estimator_in_tinybnn,
        ),
        (
            "CubicSign in the notebook has the same three methods; which of them change?",
            "The derivative of sin(c x) is c cos(c x). Where |x| > 1 the surrogate is constant.",
            "forward is that of CubicSign. The slope is np.where(inside, c * np.cos(c * x), 0) "
            "with c = np.pi / 2, in x's dtype; the surrogate is the sine of the clamped x times c.",
        ),
        _SECONDS,
    ),
    Exercise(
        "12.2",
        "MiddleOfThree",
        "A Function: the middle one of each three neighbours of x + offset, and its gradients.",
        "A Function with its gradient",
        (middle_values, middle_gradients, middle_differentiable),
        (
            "GroupMax reshapes to rows of pieces, and keeps a mask of the chosen ones. Which "
            "number is chosen here?",
            "np.argsort(...)[:, :, 1:2] are the places of the middle ones; "
            "np.take_along_axis(rows, places, axis=2) reads them. Compare np.arange(3) with the "
            "places for the mask.",
            "The gradient of x is that of GroupMax. Adding an offset has slope 1, and all N "
            "samples use the same offset: sum the gradient of x over axis 0. Return both.",
        ),
        _SECONDS,
    ),
    Exercise(
        "12.3",
        "BinaryVote",
        "A layer with a latent weight and an offset, whose outputs are middle ones of products.",
        "A layer",
        (layer_parameters, layer_values, layer_learns, layer_compiles),
        (
            "BinaryMaxout in the notebook has one parameter; here is a second one, which is no "
            "weight behind a sign.",
            "Three rows of the weight belong to each output. rng.uniform gives float64: make it "
            "float32 before it becomes a parameter.",
            "forward has two lines: F.linear of the quantized x and the quantized weight, then "
            "MiddleOfThree.apply of the sums and self.offset.",
        ),
        _SECONDS,
    ),
    Exercise(
        "12.4",
        "MiddleOfThreeOperation",
        "The packed form of MiddleOfThree: its shape rule, and what it takes from a traced call.",
        "A packed operation",
        (operation_shape, operation_refuses, operation_of_call, operation_exact),
        (
            "Compare with GroupMaxOperation: a setting there, an array here. What does an "
            "operation with an array look like in the package?",
            "len(x.shape) is 1 for features. The result is Value(FLOAT, (... // 3,), x.single).",
            "of_call: read call.constant(1); if it is None, raise deploy.NoPackedFormError with a "
            "sentence; otherwise return a dict with the name offset, and an empty one.",
        ),
        _SECONDS,
    ),
)  # fmt: skip
