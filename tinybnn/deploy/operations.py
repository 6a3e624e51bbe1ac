"""The operations of packed programs, one class each: semantics, shapes, and the traced Functions.

Each operation is defined once, for all users: `packed` runs it, `shapes` checks programs with it,
`compiler` creates it from a traced call, and `plan` fuses elementwise ones into one pass over
memory.

A packed model refers to operations by name and holds their constants, arrays and settings; a saved
model thus contains data only. To add an operation, write a subclass of `Operation`, in any program:
defining the class registers it. A program that loads the model needs the class too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinybnn import autograd as T
from tinybnn import functional as F
from tinybnn.deploy.advice import FIXED_ORDER, OWN_WEIGHT, ROW_FOR_EACH_SAMPLE
from tinybnn.deploy.scan import smallest_int
from tinybnn.deploy.trace import without_repetition
from tinybnn.deploy.values import (
    BITS,
    FLAT,
    FLOAT,
    SUMS,
    Value,
    broadcast,
    conv_size,
    expect_array,
    expect_count,
    expect_image,
    expect_int,
    expect_number,
    expect_pair,
    expect_sizes,
    expect_words,
    nchw,
    nhwc,
    pool,
)
from tinybnn.functional.normalization import affine_constants, per_channel
from tinybnn.kernels.signs import bits, pooling, xnor
from tinybnn.kernels.signs.thresholds import threshold as compare_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import ArrayLike

    from tinybnn.deploy.packed import Step
    from tinybnn.typing import Array, Shape, Words

    Emit = Callable[..., int]

OPERATIONS: dict[str, type[Operation]] = {}  # by name
OF_FUNCTION: dict[type[T.Function], type[Operation]] = {}  # by the Function of a trace


class NoPackedFormError(Exception):
    """Raised for a call of a known Function that has no packed form; the message says why."""


class TracedCall(NamedTuple):
    """A call of a Function in the trace of a model, the argument of `Operation.of_call`.

    Attributes
    ----------
    inputs : tuple
        Tensors, arrays and numbers.
    options : dict
    output : Tensor
    constant : callable
        Position of an input -> its array, or None if it depends on the model's input.
    results : int
        Number of inputs that depend on the model's input.
    """

    inputs: tuple[Any, ...]
    options: dict[str, Any]
    output: T.Tensor
    constant: Callable[[int], Any]
    results: int

    @property
    def shape(self) -> Shape:
        """Shape of one sample of the output."""
        return self.output.shape[1:]


class Operation:
    """An operation of packed programs; never instantiated.

    A subclass that sets ``name`` is registered: `compile` and `PackedModel.load` then use it. One
    that inherits its name is only a base of others.

    Attributes
    ----------
    name : str
        Its name in files; no two operations share one.
    inputs : tuple of str, or ...
        Kinds of the input values; ... for any number of floats.
    arrays, settings : tuple of str
        Names of its constants; those with a "?" are optional.
    functions : tuple of Function classes
        The traced Functions that it implements; () if only the compiler's recipes create it.
    is_elementwise : bool
        Whether each number of the result depends on a single number of the input: between integer
        sums and a sign, it can then be merged into the thresholds.
    takes_one_for_all : bool
        Whether its result may be a single sample for the whole batch, if the constants are.
    program : callable or None
        Its form in a program of `kernels.floats.pointwise`: ``program(emit, constant, operands,
        step)`` returns the number of the result, where ``emit(name, *operands)`` appends an
        operation and ``constant(array)`` creates an operand.
    """

    name: str = ""
    inputs: Any = (FLOAT,)
    arrays: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    functions: tuple[type[T.Function], ...] = ()
    is_elementwise: bool = False
    takes_one_for_all: bool = False
    program: Any = None

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            return
        for other in (OPERATIONS.get(cls.name), *map(OF_FUNCTION.get, cls.functions)):
            # Redefining the same class is allowed: a notebook cell may run again.
            if other and _path(other) != _path(cls):
                raise ValueError(
                    f"{cls.__qualname__}: {other.__qualname__} already has the name {other.name!r} "
                    "or one of the functions; choose another name and another Function"
                )
        OPERATIONS[cls.name] = cls
        OF_FUNCTION.update(dict.fromkeys(cls.functions, cls))

    @classmethod
    def run(cls, *values: Any, **constants: Any) -> Array:
        """Compute the result for arrays; `constants` are arrays and settings by name.

        Default: apply its Function, with the settings as options. Values between steps are float32
        (N, C, H, W) or (N, F), int32 accumulators (N, H, W, C) or (N, F), and uint64 words of bits
        (N, H, W, words) or (N, words).
        """
        settings = {name: constants.pop(name) for name in cls.settings}
        return cls.functions[0].apply(*cls.in_order(values, constants), **settings)

    @classmethod
    def in_order(cls, values: Any, arrays: dict[str, Array]) -> list[Any]:
        """Order input values and arrays as the inputs of its Function."""
        return [*values, *arrays.values()]

    @staticmethod
    def shape(x: Value, **constants: Any) -> Value:
        """Infer the `Value` of the result from those of the inputs; check the constants."""
        return x

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return arrays and settings for a `TracedCall`, or None if the operation does not apply.

        Raises
        ------
        NoPackedFormError
            Says what to write instead.
        """
        return {}, {name: call.options[name] for name in cls.settings}

    @classmethod
    def bits(cls, arrays: dict[str, Array]) -> dict[str, int]:
        """Return the number of signs in a row, for each array (by name) that holds only signs."""
        return {}


def _path(cls):
    return cls.__module__, cls.__qualname__


def identity(
    emit: Emit, constant: Callable[[ArrayLike], int], operands: Sequence[int], step: Step
) -> int:
    """The program of an operation that changes the storage of numbers, not their values."""
    return operands[0]


# ------------------------------------------------------------------------------------ bits and sums


class Pack(Operation):
    """Floats -> bits: bit 1 where x >= 0."""

    name = "pack"
    program = identity

    @staticmethod
    def run(x: Array) -> Array:
        return bits.pack(nhwc(x))

    @staticmethod
    def shape(x: Value) -> Value:
        return Value(BITS, x.shape, x.single)


class Unpack(Operation):
    """Bits -> floats ±1."""

    name = "unpack"
    inputs, settings = (BITS,), ("count",)

    @staticmethod
    def run(words: Words, *, count: int) -> Array:
        return nchw(bits.unpack(words, count))

    @staticmethod
    def shape(x: Value, *, count: int) -> Value:
        expect_count("count", count, x.shape[0])
        return Value(FLOAT, x.shape, x.single)


class UnpackFlattened(Operation):
    """Bits of flattened images (C, H, W), pixel by pixel -> floats ±1, channel by channel."""

    name = "unpack_flattened"
    inputs, settings = (FLAT,), ("image",)

    @staticmethod
    def run(words: Words, *, image: Shape) -> Array:
        channels, height, width = image
        pixels = words.reshape(len(words), height, width, -1)
        return Unpack.run(pixels, count=channels).reshape(len(words), channels * height * width)

    @staticmethod
    def shape(x: Value, *, image: Shape) -> Value:
        if expect_sizes("image", image) != x.shape:
            raise ValueError(f"image is {image}, the input was {x.shape}")
        return Value(FLOAT, (math.prod(x.shape),), x.single)


class FlattenBits(Operation):
    """(N, H, W, words) -> (N, H W words); the next layer's weights are ordered to match."""

    name = "flatten_bits"
    inputs = (BITS,)

    @staticmethod
    def run(words: Words) -> Array:
        return words.reshape(len(words), int(np.prod(words.shape[1:])))

    @staticmethod
    def shape(x: Value) -> Value:
        return Value(FLAT, expect_image(x), x.single)


def in_rows(weight: Array, mask: Array | None = None) -> list[Array | None]:
    """Flatten the planes of filters (O, ..., words) to rows (O, words); None stays None."""
    return [None if plane is None else plane.reshape(len(plane), -1) for plane in (weight, mask)]


class XnorLinear(Operation):
    """Bits -> accumulators; `count` is the number of bits in a row."""

    name = "xnor_linear"
    inputs = (f"{BITS}|{FLAT}",)
    arrays, settings = ("weight",), ("count",)

    @staticmethod
    def run(words: Words, *, count: int, **planes: Array) -> Array:
        weight, mask = in_rows(**planes)
        return xnor.xnor_matmul(words, weight, count, mask)

    @staticmethod
    def shape(x: Value, *, count: int, **planes: Array) -> Value:
        if x.kind == BITS and len(x.shape) != 1:
            raise ValueError(f"expects features (F,), got {x.shape}")
        channels, *pixels = x.shape
        rows = () if x.kind == BITS else (math.prod(pixels),)
        if type(count) is not int or count != math.prod(x.shape):
            raise ValueError(f"count {count!r} does not match {x.shape}")
        outputs = planes["weight"].shape[:1]
        for name, plane in planes.items():
            expect_words(name, plane, outputs + rows, channels)
        return Value(SUMS, outputs, x.single)


class TernaryLinear(XnorLinear):
    """Bits -> accumulators, for weights -1, 0 and 1: `weight` has a bit for +1, `mask` for ±1."""

    name = "ternary_linear"
    arrays = ("weight", "mask")


CONVOLUTION = ("stride", "padding", "dilation", "groups")


def group_channels(channels: int, weight: Array, groups: int) -> int:
    """Number of input channels of a filter; checks groups against the weight (O, kh, kw, ...)."""
    groups = expect_int("groups", groups, 1, channels)
    if weight.ndim != 4 or channels % groups or weight.shape[0] % groups:
        raise ValueError(f"groups={groups} does not match weight {weight.shape}")
    return channels // groups


class XnorConv2d(Operation):
    """Bits -> accumulators: convolution of signs with weights of ±1."""

    name = "xnor_conv2d"
    inputs, arrays = (BITS,), ("weight",)
    settings = (*CONVOLUTION, "channels", "padding_mode")

    run = staticmethod(xnor.xnor_conv2d)

    @staticmethod
    def shape(
        x: Value,
        *,
        channels: int,
        groups: int,
        padding_mode: str,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        **planes: Array,
    ) -> Value:
        image, weight = expect_image(x), planes["weight"]
        expect_count("channels", channels, image[0])
        if padding_mode not in ("zeros", "ones"):
            raise ValueError(f"padding_mode must be 'zeros' or 'ones', got {padding_mode!r}")
        per_group = group_channels(channels, weight, groups)
        for name, plane in planes.items():
            expect_words(name, plane, weight.shape[:3], per_group)
        size = conv_size(image, weight.shape[1:3], stride, padding, dilation)
        return Value(SUMS, (weight.shape[0], *size), x.single)


class TernaryConv2d(XnorConv2d):
    """Bits -> accumulators, for weights -1, 0 and 1: `weight` has a bit for +1, `mask` for ±1."""

    name = "ternary_conv2d"
    arrays = ("weight", "mask")


class Ones(Operation):
    """Bits of one sample of +1, (C, H, W) or (F,), in the shape of the input signs."""

    name = "ones"
    inputs, settings = (BITS,), ("shape",)

    @staticmethod
    def run(words: Words, *, shape: Shape) -> Array:
        channels, *pixels = shape
        return bits.pack(np.ones((1, *pixels, channels), np.float32))

    @staticmethod
    def shape(source: Value, *, shape: Shape) -> Value:
        if expect_sizes("shape", shape) != source.shape:
            raise ValueError(f"shape is {shape}, the signs have {source.shape}")
        return Value(BITS, source.shape, True)


class Threshold(Operation):
    """Accumulators -> bits: (a >= threshold) != flip. A batch norm and sign compile to this."""

    name = "threshold"
    inputs, arrays = (SUMS,), ("thresholds", "flip")

    @staticmethod
    def run(accumulator: Array, *, thresholds: Array, flip: Array) -> Array:
        return compare_sums(accumulator, thresholds.astype(np.int32), flip)

    @staticmethod
    def shape(x: Value, *, thresholds: Array, flip: Array) -> Value:
        expect_array("thresholds", thresholds, "i", x.shape[:1])
        if thresholds.dtype.itemsize > 4:
            raise ValueError(f"thresholds must have at most 32 bits, got {thresholds.dtype}")
        expect_array("flip", flip, "b", x.shape[:1])
        return Value(BITS, x.shape, x.single)


POOLING = ("kernel_size", "stride", "padding")


class MaxPoolBits(Operation):
    """Bits -> bits: OR over each window, AND in channels where `minimum`, (C,) bool, is set."""

    name = "max_pool_bits"
    inputs = (BITS,)
    arrays, settings = ("minimum",), (*POOLING, "channels")

    run = staticmethod(pooling.max_pool2d)

    @staticmethod
    def shape(x: Value, *, minimum: Array, channels: int, **windows: Any) -> Value:
        image = expect_image(x)
        expect_count("channels", channels, image[0])
        expect_array("minimum", minimum, "b", image[:1])
        return pool(x, BITS, **windows)


class ToFloat(Operation):
    """Accumulators -> floats."""

    name = "to_float"
    inputs = (SUMS,)
    program = identity

    @staticmethod
    def run(accumulator: Array) -> Array:
        return nchw(accumulator).astype(np.float32, order="K")

    @staticmethod
    def shape(x: Value) -> Value:
        return Value(FLOAT, x.shape, x.single)


# ------------------------------------------------------------------------------- products of floats


class Linear(Operation):
    """x @ weight.T, summed in one fixed order."""

    name = "linear"
    arrays, functions = ("weight",), (F.Linear, F.SignLinear)

    @staticmethod
    def run(x: Array, *, weight: Array, **geometry: Any) -> Array:
        return F.linear(x, weight, fixed_order=True)

    @staticmethod
    def shape(x: Value, *, weight: Array) -> Value:
        if len(x.shape) != 1:
            raise ValueError(f"expects features (F,), got {x.shape}")
        expect_array("weight", weight, "f", (*weight.shape[:1], *x.shape))
        return Value(FLOAT, weight.shape[:1], x.single)

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        weight = call.constant(1)
        if weight is None or call.results != 1:
            raise NoPackedFormError(OWN_WEIGHT)
        if not call.options["fixed_order"]:
            is_nan = np.isnan(weight).any()
            raise NoPackedFormError("some of its weights are NaN" if is_nan else FIXED_ORDER)
        return {"weight": weight}, dict(call.options["geometry"].options) if cls.settings else {}

    @classmethod
    def bits(cls, arrays: dict[str, Array]) -> dict[str, int]:
        weight = arrays["weight"]
        return {"weight": math.prod(weight.shape[1:])} if np.all(np.abs(weight) == 1) else {}


class Conv2d(Linear):
    """Convolution, summed in one fixed order."""

    name = "conv2d"
    settings, functions = CONVOLUTION, (F.Conv2d, F.SignConv2d)

    @staticmethod
    def run(x: Array, *, weight: Array, **geometry: Any) -> Array:
        return F.conv2d(x, weight, None, fixed_order=True, **geometry)

    @staticmethod
    def shape(x: Value, *, weight: Array, groups: int, **windows: Any) -> Value:
        image = expect_image(x)
        per_group = group_channels(image[0], weight, groups)
        expect_array("weight", weight, "f", (weight.shape[0], per_group, *weight.shape[2:]))
        return Value(
            FLOAT, (weight.shape[0], *conv_size(image, weight.shape[2:], **windows)), x.single
        )


class ConvTranspose2d(Operation):
    """Transposed convolution; `image` is the shape (C, H, W) of an output."""

    name = "conv_transpose2d"
    arrays, settings = ("weight",), (*CONVOLUTION, "image")
    functions = (F.ConvInput,)

    @staticmethod
    def run(
        x: Array,
        *,
        weight: Array,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        image: Shape,
    ) -> Array:
        geometry = F.Geometry(
            (len(x), *image), weight.shape, stride, padding, dilation, groups, x.shape[2:]
        )  # fmt: skip
        return F.ConvInput.apply(x, weight, geometry=geometry, fixed_order=True)

    @staticmethod
    def shape(
        x: Value,
        *,
        weight: Array,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        image: Shape,
    ) -> Value:
        channels, *size = expect_image(x)
        image = expect_sizes("image", image)
        groups = expect_int("groups", groups, 1, channels)
        if weight.ndim != 4 or len(image) != 3 or channels % groups or image[0] % groups:
            raise ValueError(
                f"groups={groups} and image {image} do not match weight {weight.shape}"
            )
        expect_array("weight", weight, "f", (channels, image[0] // groups, *weight.shape[2:]))
        # The adjoint of a convolution from `image` to the input; output_padding enlarges `image`.
        conv_size(image, weight.shape[2:], stride, padding, dilation)
        geometry = zip(size, image[1:], weight.shape[2:], stride, padding, dilation, strict=True)
        for n, outputs, k, s, p, d in geometry:
            least = (n - 1) * s - 2 * p + d * (k - 1) + 1
            if not least <= outputs < least + max(s, d):
                raise ValueError(f"image {image} does not match an input of {x.shape}")
        return Value(FLOAT, image, x.single)

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        weight, geometry = call.constant(1), call.options["geometry"]
        if weight is None:
            return None
        if not call.options["fixed_order"]:
            raise NoPackedFormError(FIXED_ORDER)
        return {"weight": weight}, geometry.options | {"image": geometry.image[1:]}


# ------------------------------------------------------------------------- elementwise, one operand


class _Unary(Operation):
    is_elementwise = takes_one_for_all = True

    @staticmethod
    def shape(x: Value, **numbers: float) -> Value:
        for name, value in numbers.items():
            expect_number(name, value)
        return x


def _emit(name):
    """The form of an operation that pointwise programs have under this name."""

    def program(emit, constant, operands, step):
        arrays = {key: constant(array) for key, array in step.arrays.items()}
        return emit(name, *OPERATIONS[step.operation].in_order(operands, arrays))

    return program


class Relu(_Unary):
    name = "relu"
    functions = (F.Relu,)

    @staticmethod
    def program(
        emit: Emit, constant: Callable[[ArrayLike], int], operands: Sequence[int], step: Step
    ) -> int:
        return emit("max", constant(0.0), *operands)  # 0.0, not -0.0


class Sigmoid(_Unary):
    name = "sigmoid"
    functions = (F.Sigmoid,)


class Tanh(_Unary):
    name = "tanh"
    functions = (F.Tanh,)


class Abs(_Unary):
    name = "abs"
    functions = (T.Abs,)
    program = _emit("abs")


class Exp(_Unary):
    name = "exp"
    functions = (T.Exp,)


class Log(_Unary):
    name = "log"
    functions = (T.Log,)


class Sqrt(_Unary):
    name = "sqrt"
    functions = (T.Sqrt,)
    program = _emit("sqrt")


class _Limits(_Unary):
    """Limit to [low, high]."""

    settings = ("low", "high")
    takes_one_for_all = False

    @staticmethod
    def shape(x: Value, **limits: float | None) -> Value:
        return _Unary.shape(x, **{name: n for name, n in limits.items() if n is not None})

    @staticmethod
    def program(
        emit: Emit, constant: Callable[[ArrayLike], int], operands: Sequence[int], step: Step
    ) -> int:
        (x,) = operands
        for name, limit in (("max", "low"), ("min", "high")):
            if step.settings[limit] is not None:
                x = emit(name, x, constant(step.settings[limit]))
        return x


class Hardtanh(_Limits):
    name = "hardtanh"
    functions = (F.Hardtanh,)


class Clamp(_Limits):
    name = "clamp"
    functions = (T.Clamp,)


class LeakyRelu(_Unary):
    name = "leaky_relu"
    settings, functions = ("slope",), (F.LeakyRelu,)
    takes_one_for_all = False

    @staticmethod
    def program(
        emit: Emit, constant: Callable[[ArrayLike], int], operands: Sequence[int], step: Step
    ) -> int:
        return emit("prelu", *operands, constant(step.settings["slope"]))


class Softplus(_Unary):
    name = "softplus"
    settings, functions = ("beta",), (F.Softplus,)
    takes_one_for_all = False

    @staticmethod
    def shape(x: Value, *, beta: float) -> Value:
        expect_number("beta", beta, finite=True)
        if beta <= 0:
            raise ValueError(f"beta must be positive, got {beta!r}")
        return x


class PRelu(Operation):
    """x where x > 0, else weight * x."""

    name = "prelu"
    arrays, functions = ("weight",), (F.PRelu,)
    is_elementwise = True
    program = _emit("prelu")

    @staticmethod
    def shape(x: Value, *, weight: Array) -> Value:
        return broadcast(x, weight)

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return ({"weight": call.constant(1)}, {}) if call.results == 1 else None


class Affine(Operation):
    """alpha x + beta for each channel: batch norm with running statistics."""

    name = "affine"
    arrays, functions = ("alpha", "beta"), (F.BatchNorm,)
    is_elementwise = True

    @staticmethod
    def run(x: Array, *, alpha: Array, beta: Array) -> Array:
        return x * per_channel(alpha, x) + per_channel(beta, x)

    @staticmethod
    def shape(x: Value, **arrays: Array) -> Value:
        for name in Affine.arrays:
            expect_array(name, arrays[name], "f", x.shape[:1])
        return x

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        options, weight, bias = call.options, call.constant(1), call.constant(2)
        if options["mean"] is None:
            return None
        if weight is None or bias is None:  # they depend on the model's input
            return dict.fromkeys(cls.arrays), {}
        constants = affine_constants(weight, bias, options["mean"], options["var"], options["eps"])
        return dict(zip(cls.arrays, constants, strict=True)), {}

    @staticmethod
    def program(
        emit: Emit, constant: Callable[[ArrayLike], int], operands: Sequence[int], step: Step
    ) -> int:
        scaled = emit("mul", *operands, step.arrays["alpha"])
        return emit("add", scaled, step.arrays["beta"])


class BatchNorm(Operation):
    """Batch norm in files before version 3: ((x - mean) * scale) * weight + bias."""

    name, settings = "batch_norm", ("eps",)
    arrays = ("weight", "bias", "mean", "var")

    @staticmethod
    def run(x: Array, *, eps: float, **arrays: Array) -> Array:
        for name, constant in BatchNorm.stages(arrays, eps):
            x = OPERATIONS[name].run(x, right=per_channel(constant, x))
        return x

    @staticmethod
    def shape(x: Value, *, eps: float, **arrays: Array) -> Value:
        expect_number("eps", eps, finite=True)
        for name in BatchNorm.arrays:
            expect_array(name, arrays[name], "f", x.shape[:1])
        return x

    @staticmethod
    def stages(arrays: dict[str, Array], eps: float) -> list[tuple[str, Array]]:
        """The four operations, each with its constant (C,) float32."""
        scale = 1.0 / np.sqrt(arrays["var"] + eps)
        constants = arrays["mean"], scale, arrays["weight"], arrays["bias"]
        names = "sub", "mul", "mul", "add"
        return [(n, v.astype(np.float32)) for n, v in zip(names, constants, strict=True)]

    @staticmethod
    def program(
        emit: Emit, constant: Callable[[ArrayLike], int], operands: Sequence[int], step: Step
    ) -> int:
        (x,) = operands
        for name, array in BatchNorm.stages(step.arrays, step.settings["eps"]):
            x = emit(name, x, array)
        return x


# --------------------------------------------------------------------------------- several operands


def filled(constants: Sequence[Any], values: Iterable[Any]) -> list[Any]:
    """Replace each None in the constants by the next of the values; return the list."""
    values = iter(values)
    return [next(values) if constant is None else constant for constant in constants]


class _Operands(Operation):
    """Base of operations whose operands are constants or results of earlier steps.

    Attributes
    ----------
    arrays : tuple of str
        A name for each operand, with a "?".
    """

    inputs = ...
    arrays = ("left?", "right?")

    @classmethod
    def in_order(cls, values: Sequence[Any], arrays: dict[str, Array]) -> list[Any]:
        return filled([arrays.get(name.rstrip("?")) for name in cls.arrays], values)

    @classmethod
    def shape(cls, *values: Value, **constants: Any) -> Value:
        count = len(values) + len(constants)
        if count != len(cls.arrays) or not values:
            raise ValueError(f"expects {len(cls.arrays)} operands, got {count}")
        return broadcast(*values, *constants.values())

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        arrays = {}
        for position, name in enumerate(cls.arrays):
            value = call.constant(position)
            if value is not None:
                if value.ndim == call.output.ndim:
                    value = without_repetition(value)  # such as ones_like(x)
                    if len(value) > 1:
                        raise NoPackedFormError(ROW_FOR_EACH_SAMPLE)
                arrays[name.rstrip("?")] = value.astype(np.float32)
        return arrays, super().of_call(call)[1]


class _Binary(_Operands):
    is_elementwise = takes_one_for_all = True


class Add(_Binary):
    name = "add"
    functions, program = (T.Add,), _emit("add")


class Sub(_Binary):
    name = "sub"
    functions, program = (T.Sub,), _emit("sub")


class Mul(_Binary):
    name = "mul"
    functions, program = (T.Mul,), _emit("mul")


class Div(_Binary):
    name = "div"
    functions, program = (T.Div,), _emit("div")


class Maximum(_Binary):
    name = "maximum"
    functions, program = (T.Maximum,), _emit("max")


class Minimum(_Binary):
    name = "minimum"
    functions = (T.Minimum,)


class Compare(_Operands):
    """1.0 where ``left operator right`` holds, else 0.0."""

    name = "compare"
    settings, functions = ("operator",), (T.Compare,)

    @classmethod
    def shape(cls, *values: Any, operator: str, **constants: Any) -> Value:
        if operator not in T.COMPARISONS:
            known = ", ".join(T.COMPARISONS)
            raise ValueError(f"operator must be one of {known}, got {operator!r}")
        return super().shape(*values, **constants)


class Where(_Operands):
    """`left` where `condition` is not 0, `right` elsewhere."""

    name = "where"
    arrays, functions = ("condition?", "left?", "right?"), (T.Where,)


class Cat(Operation):
    name = "cat"
    inputs, settings, functions = ..., ("dim",), (T.Cat,)

    @staticmethod
    def run(*values: Array, dim: int) -> Array:
        return np.concatenate(values, dim)

    @staticmethod
    def shape(*values: Value, dim: int) -> Value:
        first = values[0]
        dim = expect_int("dim", dim, 1, len(first.shape)) - 1
        rests = [(*v.shape[:dim], *v.shape[dim + 1 :]) for v in values]
        for value, rest in zip(values, rests, strict=True):
            same_kind = (len(value.shape), value.single) == (len(first.shape), first.single)
            if not same_kind or rest != rests[0]:
                raise ValueError(f"cannot join {first.shape} and {value.shape}")
        joined = sum(value.shape[dim] for value in values)
        return Value(FLOAT, (*first.shape[:dim], joined, *first.shape[dim + 1 :]), first.single)

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        fits = call.options["dim"] > 0 and call.results == len(call.inputs)
        return super().of_call(call) if fits else None


# -------------------------------------------------------------------------------- pixels and shapes


class _Pool(Operation):
    settings = POOLING

    @staticmethod
    def shape(x: Value, **windows: Any) -> Value:
        return pool(x, FLOAT, **windows)

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return {}, pooling_settings(call.options["windows"])


def pooling_settings(windows: Any) -> dict[str, tuple[int, int]]:
    return dict(zip(POOLING, (windows.kernel, windows.stride, windows.padding), strict=True))


class MaxPool2d(_Pool):
    name = "max_pool2d"
    functions, run = (F.MaxPool2d,), staticmethod(F.max_pool2d)


class AvgPool2d(_Pool):
    name = "avg_pool2d"
    functions, run = (F.AvgPool2d,), staticmethod(F.avg_pool2d)


class SumPixels(Operation):
    """Sums over axes after the channels."""

    name = "sum_pixels"
    settings, functions = ("dim", "keepdim"), (T.SumPixels,)

    @staticmethod
    def shape(x: Value, *, dim: Sequence[int], keepdim: bool) -> Value:
        dims = [expect_int("dim", d, 2, len(x.shape)) for d in expect_sizes("dim", dim)]
        if len(set(dims)) != len(dims) or type(keepdim) is not bool:
            raise ValueError(
                f"dim {dim} and keepdim {keepdim!r} do not match an input of {x.shape}"
            )
        kept = [1 if axis in dims else n for axis, n in enumerate(x.shape, start=1)]
        left = [n for axis, n in enumerate(x.shape, start=1) if axis not in dims]
        return Value(FLOAT, tuple(kept if keepdim else left), x.single)


class Reshape(Operation):
    """Reshape each sample."""

    name = "reshape"
    settings, functions = ("shape",), (T.Reshape,)

    @staticmethod
    def run(x: Array, *, shape: Shape) -> Array:
        return x.reshape(len(x), *shape)

    @staticmethod
    def shape(x: Value, *, shape: Shape) -> Value:
        shape = expect_sizes("shape", shape)
        if math.prod(shape) != math.prod(x.shape):
            raise ValueError(f"shape is {shape}, the input has {x.shape}")
        return Value(FLOAT, shape, x.single)

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return {}, {"shape": call.shape}


class Pad(Operation):
    name = "pad"
    settings, functions = ("widths", "value"), (T.Pad,)

    @staticmethod
    def shape(x: Value, *, widths: Sequence[tuple[int, int]], value: float) -> Value:
        expect_number("value", value)
        if not isinstance(widths, list | tuple) or len(widths) != len(x.shape) + 1:
            raise ValueError(f"widths must be a pair for each axis, got {widths!r}")
        pairs = [expect_pair("widths", pair, 0) for pair in widths]
        if pairs[0] != (0, 0):
            raise ValueError(f"widths {widths} do not match an input of {x.shape}")
        shape = (n + sum(pair) for n, pair in zip(x.shape, pairs[1:], strict=True))
        return Value(FLOAT, tuple(shape), x.single)

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return super().of_call(call) if call.options["widths"][0] == (0, 0) else None


class TakeChannels(Operation):
    """out[:, i] = x[:, index[i]]: a channel shuffle, or repeated channels."""

    name = "take_channels"
    arrays, functions = ("index",), (F.TakeChannels,)

    @staticmethod
    def shape(x: Value, *, index: Array) -> Value:
        channels, *size = expect_image(x)
        if index.ndim != 1 or index.dtype.kind not in "iu" or not index.size:
            raise ValueError(
                f"index must be a 1-D array of ints, got {index.dtype} of shape {index.shape}"
            )
        if index.min() < 0 or index.max() >= channels:
            raise ValueError(f"index must lie from 0 to {channels - 1}")
        return Value(FLOAT, (index.size, *size), x.single)

    @classmethod
    def of_call(cls, call: TracedCall) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return cls.taking(call.options["index"]), {}

    @staticmethod
    def taking(index: Array) -> dict[str, Array]:
        """The arrays of the operation for an index (C,), in the smallest dtype."""
        return {"index": index.astype(smallest_int(int(index.max())))}
