"""What each step of a packed program takes and gives: its shapes, worked out without running it.

A program comes from a file, and a file may say anything. Before it runs, every step is held against
its operation: the kind and the shape of its inputs, the dtype and the shape of its arrays, the type
and the range of its settings. So a program that passes can be run, and needs memory of the order of
its own images and weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tinybnn.autograd import COMPARISONS
from tinybnn.kernels.machine.layout import words_for

MOST_BYTES = 1 << 28  # of one sample's result of a step, as float32; with its padding

FLOAT, SUMS, BITS, FLAT = "floats", "sums", "bits", "bits of a flattened image"


@dataclass(frozen=True)
class Value:
    """The result of a step.

    Attributes
    ----------
    kind : str
        FLOAT, SUMS (integers), BITS, or FLAT (of an image (C, H, W), pixel by pixel).
    shape : tuple of int
        Of one sample, channels first; for FLAT that of the image.
    single : bool
        Whether there is one for all samples of a batch.
    """

    kind: str
    shape: tuple
    single: bool = False


def infer(input_shape, steps):
    """The `Value` of each step.

    Parameters
    ----------
    input_shape : tuple of int
    steps : sequence of Step

    Returns
    -------
    list of Value

    Raises
    ------
    ValueError
        Naming the step that does not fit.
    """
    values = [Value(FLOAT, _sizes("input_shape", input_shape))]
    for i, step in enumerate(steps):
        inputs = [values[source + 1] for source in step.inputs]
        try:
            if step.operation not in _RULES:
                raise ValueError("the operation is unknown")
            rule, kinds, arrays, settings = _RULES[step.operation]
            _expect_inputs(inputs, kinds)
            _expect_names("arrays", step.arrays, arrays)
            _expect_names("settings", step.settings, settings)
            for name, array in step.arrays.items():
                if not array.size:
                    raise ValueError(f"{name} must not be empty, got shape {array.shape}")
            values.append(rule(*inputs, **step.arrays, **step.settings))
            _expect_memory("the result", values[-1].shape)
        except ValueError as error:
            raise ValueError(f"step {i} of layer {step.name} ({step.operation}): {error}") from None
    if not steps or values[-1].kind != FLOAT:
        raise ValueError(f"a program must end in floats, this one ends in {values[-1].kind}")
    return values[1:]


# How a step says that its result is to be read.
_LAYOUTS = {"float": FLOAT, "accumulator": SUMS, "bits": BITS, "flattened bits": FLAT}


def expect_results(steps, values, calls):
    """Each step gives what it says that it gives, and names one of the float model's operations.

    Parameters
    ----------
    steps : sequence of Step
    values : list of Value
        What `infer` gives for them.
    calls : int
        Number of the float model's operations.

    Raises
    ------
    ValueError
        Naming the step.
    """
    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        if step.layout == "internal":
            continue
        where = f"step {i} of layer {step.name} ({step.operation})"
        if _LAYOUTS.get(step.layout) != value.kind:
            raise ValueError(f"{where}: gives {value.kind}, which is not {step.layout!r}")
        if step.shape != value.shape:
            raise ValueError(f"{where}: gives {value.shape}, the model {step.shape}")
        if type(step.call) is not int or not 0 <= step.call < calls:
            raise ValueError(f"{where}: call {step.call!r} is none of the model's {calls}")


def _expect_inputs(inputs, kinds):
    if kinds is ...:  # any number of floats
        kinds = (FLOAT,) * max(1, len(inputs))
    if len(inputs) != len(kinds):
        raise ValueError(f"takes {len(kinds)} inputs, got {len(inputs)}")
    for value, kind in zip(inputs, kinds, strict=True):
        if value.kind not in kind.split("|"):
            raise ValueError(f"takes {kind}, got {value.kind}")


def _expect_memory(what, shape):
    """A few numbers in a file must not fill the memory."""
    if 4 * math.prod(shape) > MOST_BYTES:
        raise ValueError(
            f"{what} of shape {tuple(shape)} takes {4 * math.prod(shape) / 2**20:.0f} MiB for each "
            f"sample; a packed model holds up to {MOST_BYTES >> 20} MiB"
        )


def _expect_names(what, given, expected):
    needed = {name for name in expected if not name.endswith("?")}
    allowed = {name.rstrip("?") for name in expected}
    if not needed <= set(given) <= allowed:
        raise ValueError(f"takes the {what} {sorted(allowed)}, got {sorted(given)}")


# ------------------------------------------------------------------------------- checks of settings


def _int(name, value, low, high=2**31 - 1):
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be an int from {low} to {high}, got {value!r}")
    return value


def _number(name, value, *, finite=False):
    is_number = type(value) is float or (type(value) is int and abs(value) < 2**127)  # float32's
    if not is_number or (finite and not math.isfinite(value)):
        raise ValueError(f"{name} must be a number, got {value!r}")


def _sizes(name, value, low=1):
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} must be a list of ints, got {value!r}")
    return tuple(_int(name, n, low) for n in value)


def _pair(name, value, low):
    pair = _sizes(name, value, low)
    if len(pair) != 2:
        raise ValueError(f"{name} must be two ints, got {value!r}")
    return pair


def _array(name, array, kinds, shape):
    if array.dtype.kind not in kinds or array.shape != tuple(shape):
        raise ValueError(
            f"{name} must have the shape {tuple(shape)}, got {array.dtype} of shape {array.shape}"
        )
    if kinds == "f" and array.dtype != np.float32:
        raise ValueError(f"{name} must be float32, got {array.dtype}")


def _words(name, array, shape, count):
    """An array (*shape, words) of rows with `count` bits; kernels rely on zeros behind them."""
    _array(name, array, "u", (*shape, words_for(count)))
    if array.dtype != np.uint64:
        raise ValueError(f"{name} must be uint64, got {array.dtype}")
    if count % 64 and np.any(array[..., -1] >> np.uint64(count % 64)):
        raise ValueError(f"{name} has bits set behind the {count} of a row")


def _image(value):
    if len(value.shape) != 3:
        raise ValueError(f"takes images (C, H, W), got {value.shape}")
    return value.shape


def _windows(image, kernel, stride, padding, dilation=(1, 1)):
    """Output size (H, W) of windows that slide over an image (C, H, W)."""
    channels, *size = image
    height, width = (n + 2 * p for n, p in zip(size, padding, strict=True))
    _expect_memory("the padded image", (channels, height, width))
    result = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        if span > n + 2 * p:
            raise ValueError(f"a window of {span} does not fit into {n} pixels, padded by {p}")
        result.append((n + 2 * p - span) // s + 1)
    return tuple(result)


# ---------------------------------------------------------------------------------------- the rules


def _pack(x):
    return Value(BITS, x.shape, x.single)


def _unpack(x, *, count):
    if type(count) is not int or count != x.shape[0]:
        raise ValueError(f"count is {count!r}, the input has {x.shape[0]} channels")
    return Value(FLOAT, x.shape, x.single)


def _unpack_flattened(x, *, image):
    if _sizes("image", image) != x.shape:
        raise ValueError(f"image is {image}, the input was {x.shape}")
    return Value(FLOAT, (math.prod(x.shape),), x.single)


def _flatten_bits(x):
    return Value(FLAT, _image(x), x.single)


def _binary_linear(x, *, weight, count, mask=None):
    if x.kind == BITS and len(x.shape) != 1:
        raise ValueError(f"takes features (F,), got {x.shape}")
    channels, *pixels = x.shape
    rows = () if x.kind == BITS else (math.prod(pixels),)
    if type(count) is not int or count != math.prod(x.shape):
        raise ValueError(f"count {count!r} does not fit to {x.shape}")
    outputs = weight.shape[:1]
    for name, plane in (("weight", weight), ("mask", mask)):
        if plane is not None:
            _words(name, plane, outputs + rows, channels)
    return Value(SUMS, outputs, x.single)


def _binary_conv2d(
    x, *, weight, channels, stride, padding, dilation, groups, padding_mode, mask=None
):
    image = _image(x)
    if type(channels) is not int or channels != image[0]:
        raise ValueError(f"channels is {channels!r}, the input has {image[0]}")
    if padding_mode not in ("zeros", "ones"):
        raise ValueError(f"padding_mode must be 'zeros' or 'ones', got {padding_mode!r}")
    groups = _int("groups", groups, 1, channels)
    if weight.ndim != 4 or channels % groups or weight.shape[0] % groups:
        raise ValueError(f"groups={groups} does not fit to weight {weight.shape}")
    for name, plane in (("weight", weight), ("mask", mask)):
        if plane is not None:
            _words(name, plane, weight.shape[:3], channels // groups)
    size = _conv_size(image, weight.shape[1:3], stride, padding, dilation)
    return Value(SUMS, (weight.shape[0], *size), x.single)


def _conv_size(image, kernel, stride, padding, dilation):
    return _windows(
        image, kernel, _pair("stride", stride, 1), _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
    )  # fmt: skip


def _threshold(x, *, thresholds, flip):
    _array("thresholds", thresholds, "i", x.shape[:1])
    if thresholds.dtype.itemsize > 4:
        raise ValueError(f"thresholds must have at most 32 bits, got {thresholds.dtype}")
    _array("flip", flip, "b", x.shape[:1])
    return Value(BITS, x.shape, x.single)


def _max_pool_bits(x, *, minimum, channels, kernel_size, stride, padding):
    image = _image(x)
    if type(channels) is not int or channels != image[0]:
        raise ValueError(f"channels is {channels!r}, the input has {image[0]}")
    _array("minimum", minimum, "b", image[:1])
    return _pool(x, BITS, kernel_size, stride, padding)


def _float_pool(x, *, kernel_size, stride, padding):
    return _pool(x, FLOAT, kernel_size, stride, padding)


def _pool(x, kind, kernel_size, stride, padding):
    image = _image(x)
    kernel, padding = _pair("kernel_size", kernel_size, 1), _pair("padding", padding, 0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding {padding} is more than half of the window {kernel}")
    size = _windows(image, kernel, _pair("stride", stride, 1), padding)
    return Value(kind, (image[0], *size), x.single)


def _sum_pixels(x, *, dim, keepdim):
    dims = [_int("dim", d, 2, len(x.shape)) for d in _sizes("dim", dim)]
    if len(set(dims)) != len(dims) or type(keepdim) is not bool:
        raise ValueError(f"dim {dim} and keepdim {keepdim!r} do not fit to an input of {x.shape}")
    kept = [1 if axis in dims else n for axis, n in enumerate(x.shape, start=1)]
    left = [n for axis, n in enumerate(x.shape, start=1) if axis not in dims]
    return Value(FLOAT, tuple(kept if keepdim else left), x.single)


def _to_float(x):
    return Value(FLOAT, x.shape, x.single)


def _linear(x, *, weight):
    if len(x.shape) != 1:
        raise ValueError(f"takes features (F,), got {x.shape}")
    _array("weight", weight, "f", (*weight.shape[:1], *x.shape))
    return Value(FLOAT, weight.shape[:1], x.single)


def _conv2d(x, *, weight, stride, padding, dilation, groups):
    image = _image(x)
    groups = _int("groups", groups, 1, image[0])
    if weight.ndim != 4 or image[0] % groups or weight.shape[0] % groups:
        raise ValueError(f"groups={groups} does not fit to weight {weight.shape}")
    _array("weight", weight, "f", (weight.shape[0], image[0] // groups, *weight.shape[2:]))
    size = _conv_size(image, weight.shape[2:], stride, padding, dilation)
    return Value(FLOAT, (weight.shape[0], *size), x.single)


def _conv_transpose2d(x, *, weight, stride, padding, dilation, groups, image):
    channels, *size = _image(x)
    image = _sizes("image", image)
    groups = _int("groups", groups, 1, channels)
    if weight.ndim != 4 or len(image) != 3 or channels % groups or image[0] % groups:
        raise ValueError(f"groups={groups} and image {image} do not fit to weight {weight.shape}")
    _array("weight", weight, "f", (channels, image[0] // groups, *weight.shape[2:]))
    # It is the adjoint of a convolution from `image` to the input; with output_padding, to more
    # than that.
    _conv_size(image, weight.shape[2:], stride, padding, dilation)
    geometry = zip(size, image[1:], weight.shape[2:], stride, padding, dilation, strict=True)
    for n, found, k, s, p, d in geometry:
        least = (n - 1) * s - 2 * p + d * (k - 1) + 1
        if not least <= found < least + max(s, d):
            raise ValueError(f"image {image} does not fit to an input of {x.shape}")
    return Value(FLOAT, image, x.single)


def _batch_norm(x, *, weight, bias, mean, var, eps):
    _number("eps", eps, finite=True)
    for name, array in (("weight", weight), ("bias", bias), ("mean", mean), ("var", var)):
        _array(name, array, "f", x.shape[:1])
    return x


def _prelu(x, *, weight):
    return _broadcast(x, weight)


def _unary(x, **numbers):
    for name, value in numbers.items():
        if value is not None:
            _number(name, value)
    return x


def _leaky_relu(x, *, slope):
    _number("slope", slope)
    return x


def _softplus(x, *, beta):
    _number("beta", beta, finite=True)
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta!r}")
    return x


def _two_operands(*values, left=None, right=None):
    return _operands(2, values, left, right)


def _operands(count, values, *constants):
    constants = [array for array in constants if array is not None]
    if len(values) + len(constants) != count or not values:
        raise ValueError(f"takes {count} operands, got {len(values) + len(constants)}")
    return _broadcast(*values, *constants)


def _compare(*values, operator, left=None, right=None):
    if operator not in COMPARISONS:
        raise ValueError(f"operator must be one of {', '.join(COMPARISONS)}, got {operator!r}")
    return _operands(2, values, left, right)


def _where(*values, condition=None, left=None, right=None):
    return _operands(3, values, condition, left, right)


def _broadcast(first, *others):
    """The value of floats that are broadcast against values or constants."""
    shapes, single = [(1, *first.shape)], first.single
    for other in others:
        if isinstance(other, Value):
            shapes.append((1, *other.shape))
            single = single and other.single
        elif other.dtype != np.float32:
            raise ValueError(f"constants must be float32, got {other.dtype}")
        else:
            shapes.append(other.shape)
    shape = np.broadcast_shapes(*shapes)
    sizes = {len(shape), *(1 + len(v.shape) for v in (first, *others) if isinstance(v, Value))}
    if shape[0] != 1 or len(sizes) > 1:  # samples would meet pixels
        raise ValueError(f"shapes {shapes} do not fit to each other")
    return Value(FLOAT, shape[1:], single)


def _reshape(x, *, shape):
    shape = _sizes("shape", shape)
    if math.prod(shape) != math.prod(x.shape):
        raise ValueError(f"shape is {shape}, the input has {x.shape}")
    return Value(FLOAT, shape, x.single)


def _pad(x, *, widths, value):
    _number("value", value)
    if not isinstance(widths, list | tuple) or len(widths) != len(x.shape) + 1:
        raise ValueError(f"widths must be a pair for each axis, got {widths!r}")
    pairs = [_pair("widths", pair, 0) for pair in widths]
    if pairs[0] != (0, 0):
        raise ValueError(f"widths {widths} do not fit to an input of {x.shape}")
    shape = (n + sum(pair) for n, pair in zip(x.shape, pairs[1:], strict=True))
    return Value(FLOAT, tuple(shape), x.single)


def _cat(*values, dim):
    first = values[0]
    dim = _int("dim", dim, 1, len(first.shape)) - 1
    for value in values[1:]:
        rest = value.shape[:dim] + value.shape[dim + 1 :]
        if len(value.shape) != len(first.shape) or value.single != first.single:
            raise ValueError(f"cannot join {first.shape} and {value.shape}")
        if rest != first.shape[:dim] + first.shape[dim + 1 :]:
            raise ValueError(f"cannot join {first.shape} and {value.shape}")
    joined = sum(value.shape[dim] for value in values)
    return Value(FLOAT, (*first.shape[:dim], joined, *first.shape[dim + 1 :]), first.single)


def _take_channels(x, *, index):
    channels, *size = _image(x)
    if index.ndim != 1 or index.dtype.kind not in "iu" or not index.size:
        raise ValueError(f"index must be a row of ints, got {index.dtype} of shape {index.shape}")
    if index.min() < 0 or index.max() >= channels:
        raise ValueError(f"index must lie from 0 to {channels - 1}")
    return Value(FLOAT, (index.size, *size), x.single)


def _ones(source, *, shape):
    if _sizes("shape", shape) != source.shape:
        raise ValueError(f"shape is {shape}, the signs have {source.shape}")
    return Value(BITS, source.shape, True)


_CONV = ("stride", "padding", "dilation", "groups")
_POOL = ("kernel_size", "stride", "padding")

# operation: (rule, kinds of the inputs, names of the arrays, names of the settings)
_RULES = {
    "pack": (_pack, (FLOAT,), (), ()),
    "unpack": (_unpack, (BITS,), (), ("count",)),
    "unpack_flattened": (_unpack_flattened, (FLAT,), (), ("image",)),
    "flatten_bits": (_flatten_bits, (BITS,), (), ()),
    "xnor_linear": (_binary_linear, (f"{BITS}|{FLAT}",), ("weight",), ("count",)),
    "ternary_linear": (
        _binary_linear, (f"{BITS}|{FLAT}",), ("weight", "mask"), ("count",),
    ),
    "xnor_conv2d": (
        _binary_conv2d, (BITS,), ("weight",), (*_CONV, "channels", "padding_mode"),
    ),
    "ternary_conv2d": (
        _binary_conv2d, (BITS,), ("weight", "mask"), (*_CONV, "channels", "padding_mode"),
    ),
    "threshold": (_threshold, (SUMS,), ("thresholds", "flip"), ()),
    "max_pool_bits": (_max_pool_bits, (BITS,), ("minimum",), (*_POOL, "channels")),
    "ones": (_ones, (BITS,), (), ("shape",)),
    "to_float": (_to_float, (SUMS,), (), ()),
    "linear": (_linear, (FLOAT,), ("weight",), ()),
    "conv2d": (_conv2d, (FLOAT,), ("weight",), _CONV),
    "conv_transpose2d": (_conv_transpose2d, (FLOAT,), ("weight",), (*_CONV, "image")),
    "batch_norm": (_batch_norm, (FLOAT,), ("weight", "bias", "mean", "var"), ("eps",)),
    "max_pool2d": (_float_pool, (FLOAT,), (), _POOL),
    "avg_pool2d": (_float_pool, (FLOAT,), (), _POOL),
    "sum_pixels": (_sum_pixels, (FLOAT,), (), ("dim", "keepdim")),
    "reshape": (_reshape, (FLOAT,), (), ("shape",)),
    "prelu": (_prelu, (FLOAT,), ("weight",), ()),
    "leaky_relu": (_leaky_relu, (FLOAT,), (), ("slope",)),
    "softplus": (_softplus, (FLOAT,), (), ("beta",)),
    "hardtanh": (_unary, (FLOAT,), (), ("low", "high")),
    "clamp": (_unary, (FLOAT,), (), ("low", "high")),
    "compare": (_compare, ..., ("left?", "right?"), ("operator",)),
    "where": (_where, ..., ("condition?", "left?", "right?"), ()),
    "pad": (_pad, (FLOAT,), (), ("widths", "value")),
    "cat": (_cat, ..., (), ("dim",)),
    "take_channels": (_take_channels, (FLOAT,), ("index",), ()),
    **{
        name: (_unary, (FLOAT,), (), ())
        for name in ("relu", "sigmoid", "tanh", "abs", "exp", "log", "sqrt")
    },
    **{
        name: (_two_operands, ..., ("left?", "right?"), ())
        for name in ("add", "sub", "mul", "div", "maximum", "minimum")
    },
}  # fmt: skip
