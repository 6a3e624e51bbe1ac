"""Activations, softmax and dropout: functions of each element, or along one axis."""

from __future__ import annotations

import math

import numpy as np

from tinybnn.autograd import (
    OF_NUMPY,
    Function,
    as_array,
    clamp,
    clip,
    default_generator,
    exp,
    sum,
    where,
)  # fmt: skip
from tinybnn.autograd.operations import select
from tinybnn.kernels import dispatch

_POSITIVE = np.nextafter(np.float32(0), np.float32(1)), np.inf  # the floats above 0


class Relu(Function):
    """x where x > 0, else 0.0; NaN where x is."""

    saves = ("output",)

    def forward(self, x):
        result = np.maximum(x, 0)
        result += result.dtype.type(0)  # NumPy may take -0.0 for the larger of 0.0 and -0.0
        return result

    def backward(self, grad, output, x):
        result = dispatch.gated_gradient(grad, output, *_POSITIVE)
        return grad * (as_array(output) > 0) if result is None else result


class Hardtanh(Function):
    """Limit to [low, high]; the slope is 1 strictly inside, 0 elsewhere."""

    def forward(self, x, low, high):
        self.low, self.high = low, high
        return clip(x, low, high)

    def backward(self, grad, output, x):
        values = as_array(x)
        inside = np.nextafter(np.float32([self.low, self.high]), np.float32([np.inf, -np.inf]))
        result = dispatch.gated_gradient(grad, x, *inside)
        return grad * ((values > self.low) & (values < self.high)) if result is None else result


class LeakyRelu(Function):
    """x where x > 0, else slope * x; the slope also at 0."""

    def forward(self, x, slope):
        self.slope = slope
        result = dispatch.leaky_relu(x, slope)
        return np.where(x > 0, x, slope * x) if result is None else result

    def backward(self, grad, output, x):
        result = dispatch.leaky_relu_gradient(grad, x, self.slope)
        return where(as_array(x) > 0, grad, self.slope * grad) if result is None else result


class PRelu(Function):
    """x where x > 0, else weight * x, with a weight that is learned."""

    broadcasts = True

    def forward(self, x, weight):
        return select(x > 0, x, weight * x)

    def backward(self, grad, output, x, weight):
        positive = as_array(x) > 0
        return where(positive, grad, grad * weight), where(positive, 0.0, grad * x)


class Softplus(Function):
    """log(1 + exp(beta x)) / beta."""

    def forward(self, x, beta):
        self.beta = beta
        return np.logaddexp(0, beta * x) / beta

    def backward(self, grad, output, x):
        return grad * sigmoid(self.beta * x)


class Sigmoid(Function):
    saves = ("output",)

    def forward(self, x):
        z = np.exp(-np.abs(x))  # at most 1: no overflow on either side
        return np.where(x >= 0, 1 / (1 + z), z / (1 + z))

    def backward(self, grad, output, x):
        return grad * output * (1.0 - output)


class Tanh(Function):
    saves = ("output",)

    def forward(self, x):
        return np.tanh(x)

    def backward(self, grad, output, x):
        return grad * (1.0 - output * output)


class Erf(Function):
    """The error function, 2 / sqrt(pi) times the integral of exp(-t²) from 0 to x."""

    def forward(self, x):
        return _ERF(x).astype(x.dtype)

    def backward(self, grad, output, x):
        return grad * exp(-(x * x)) * (2 / math.sqrt(math.pi))


_ERF = np.frompyfunc(math.erf, 1, 1)  # NumPy has none; about 0.1 s for a million elements


class LogSoftmax(Function):
    saves = ("output",)

    def forward(self, x, dim):
        self.dim = dim
        shifted = x - x.max(axis=dim, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=dim, keepdims=True))

    def backward(self, grad, output, x):
        return grad - exp(output) * sum(grad, self.dim, keepdim=True)


def relu(x, inplace=False):
    """x where x > 0, else 0.0 (not -0.0); slope 0 at 0.

    Here and below `inplace` is accepted for scripts written for PyTorch, and has no effect: the
    result is a new Tensor.
    """
    return Relu.apply(x)


def relu6(input, inplace=False):
    """Limit to [0, 6]; the slope is 1 strictly inside and 0 elsewhere."""
    return hardtanh(input, 0.0, 6.0)


def hardtanh(x, min_val=-1.0, max_val=1.0, inplace=False):
    """Limit to [min_val, max_val]; the slope is 1 strictly inside and 0 elsewhere."""
    if not min_val < max_val:
        raise ValueError(f"hardtanh: min_val {min_val} must be below max_val {max_val}")
    return Hardtanh.apply(x, low=float(min_val), high=float(max_val))


def leaky_relu(x, negative_slope=0.01, inplace=False):
    """x where x > 0, else negative_slope * x."""
    return LeakyRelu.apply(x, slope=float(negative_slope))


def softplus(x, beta=1.0):
    """log(1 + exp(beta x)) / beta, without overflow."""
    if not beta > 0:
        raise ValueError(f"softplus: beta must be positive, got {beta!r}")
    return Softplus.apply(x, beta=float(beta))


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return Sigmoid.apply(x)


def tanh(x):
    """Hyperbolic tangent."""
    return Tanh.apply(x)


OF_NUMPY[np.tanh] = tanh


def hardsigmoid(x, inplace=False):
    """clamp(x + 3, 0, 6) / 6: three straight lines for the sigmoid.

    MobileNetV3 (Howard et al. 2019, section 5.2).
    """
    return clamp(x + 3.0, 0.0, 6.0) / 6.0


def hardswish(x, inplace=False):
    """x hardsigmoid(x), in PyTorch's order: x clamp(x + 3, 0, 6) / 6.

    MobileNetV3 (Howard et al. 2019, section 5.2).
    """
    return x * clamp(x + 3.0, 0.0, 6.0) / 6.0


def silu(input, inplace=False):
    """x sigmoid(x), also called swish (Hendrycks and Gimpel 2016; Ramachandran et al. 2017)."""
    return input * sigmoid(input)


def gelu(input, approximate="none"):
    """x times the probability that a standard normal variable is below x.

    Hendrycks and Gimpel 2016. The error function is evaluated element by element in Python; the
    approximation is faster, and has a packed form.

    Parameters
    ----------
    approximate : 'none' or 'tanh'
        'tanh': x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))) / 2.
    """
    if approximate == "none":
        return input * 0.5 * (1.0 + Erf.apply(input * math.sqrt(0.5)))
    if approximate != "tanh":
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    inner = (input + input * input * input * 0.044715) * math.sqrt(2 / math.pi)
    return input * 0.5 * (1.0 + tanh(inner))


def log_softmax(x, dim=-1):
    """log(softmax(x)) along the axis `dim`, without overflow."""
    _check_dim("log_softmax", x, dim)
    return LogSoftmax.apply(x, dim=dim)


def softmax(x, dim=-1):
    """exp(x) / sum(exp(x)) along the axis `dim`, without overflow."""
    _check_dim("softmax", x, dim)
    return exp(LogSoftmax.apply(x, dim=dim))


def _check_dim(name, x, dim):
    if not -np.ndim(x) <= dim < np.ndim(x):
        raise ValueError(f"{name}: dim {dim} is out of range for shape {np.shape(x)}")


def dropout(x, p=0.5, training=True, rng=None, *, inplace=False):
    """Set each element to 0 with probability `p` and divide the others by 1 - p, in training.

    Parameters
    ----------
    rng : numpy.random.Generator, optional
        Source of randomness; the one that `tinybnn.manual_seed` restarts by default.
    inplace : bool
        Accepted and without effect, as in `relu`.
    """
    return _dropped("dropout", x, np.shape(x), p, training, rng)


def dropout2d(input, p=0.5, training=True, rng=None, *, inplace=False):
    """`dropout` of whole channels of images (N, C, H, W)."""
    shape = np.shape(input)
    if len(shape) != 4:
        raise ValueError(f"dropout2d: input must have the shape (N, C, H, W), got {shape}")
    return _dropped("dropout2d", input, (*shape[:2], 1, 1), p, training, rng)


def _dropped(name, x, shape, p, training, rng):
    """x, or in training x times a mask of a shape."""
    if not 0 <= p < 1:
        raise ValueError(f"{name}: p must be in [0, 1), got {p}")
    if not training or p == 0:
        return x
    rng = default_generator() if rng is None else rng
    kept = rng.random(shape, dtype=np.float32) >= p
    return x * (kept * (1.0 / (1.0 - p))).astype(as_array(x).dtype)
