"""Activations, softmax and dropout: elementwise functions, and functions along one axis.

The result has the shape and the dtype of x, which may have any shape where none is given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from tinybnn.typing import Array, V

_POSITIVE = np.nextafter(np.float32(0), np.float32(1)), np.inf  # the floats above 0


class Relu(Function):
    """max(x, 0): x where x > 0, else 0.0; NaN where x is NaN."""

    saves: tuple[str, ...] = ("output",)

    def forward(self, x: Array) -> Array:
        result = np.maximum(x, 0)
        result += result.dtype.type(0)  # NumPy may take -0.0 for the larger of 0.0 and -0.0
        return result

    def backward(self, grad: V, output: V, x: V) -> V:
        result = dispatch.gated_gradient(grad, output, *_POSITIVE)
        return grad * (as_array(output) > 0) if result is None else result


class Hardtanh(Function):
    """min(max(x, low), high); the slope is 1 strictly inside, 0 elsewhere."""

    low: float
    high: float

    def forward(self, x: Array, low: float, high: float) -> Array:
        self.low, self.high = low, high
        return clip(x, low, high)

    def backward(self, grad: V, output: V, x: V) -> V:
        values = as_array(x)
        inside = np.nextafter(np.float32([self.low, self.high]), np.float32([np.inf, -np.inf]))
        result = dispatch.gated_gradient(grad, x, *inside)
        return grad * ((values > self.low) & (values < self.high)) if result is None else result


class LeakyRelu(Function):
    """x where x > 0, else slope * x; the derivative at 0 is `slope`."""

    slope: float

    def forward(self, x: Array, slope: float) -> Array:
        self.slope = slope
        result = dispatch.leaky_relu(x, slope)
        return np.where(x > 0, x, slope * x) if result is None else result

    def backward(self, grad: V, output: V, x: V) -> V:
        result = dispatch.leaky_relu_gradient(grad, x, self.slope)
        return where(as_array(x) > 0, grad, self.slope * grad) if result is None else result


class PRelu(Function):
    """x where x > 0, else weight * x, with a learned weight (He et al. 2015, eq. 1)."""

    broadcasts = True

    def forward(self, x: Array, weight: Array) -> Array:
        return select(x > 0, x, weight * x)

    def backward(self, grad: V, output: V, x: V, weight: V) -> tuple[V, V]:
        positive = as_array(x) > 0
        return where(positive, grad, grad * weight), where(positive, 0.0, grad * x)


class Softplus(Function):
    """log(1 + exp(beta x)) / beta."""

    beta: float

    def forward(self, x: Array, beta: float) -> Array:
        self.beta = beta
        return np.logaddexp(0, beta * x) / beta

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad * sigmoid(self.beta * x)


class Sigmoid(Function):
    """σ(x) = 1 / (1 + exp(-x)), with the derivative σ (1 - σ)."""

    saves: tuple[str, ...] = ("output",)

    def forward(self, x: Array) -> Array:
        z = np.exp(-np.abs(x))  # at most 1: no overflow on either side
        return np.where(x >= 0, 1 / (1 + z), z / (1 + z))

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad * output * (1.0 - output)


class Tanh(Function):
    """tanh(x), with the derivative 1 - tanh²(x)."""

    saves: tuple[str, ...] = ("output",)

    def forward(self, x: Array) -> Array:
        return np.tanh(x)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad * (1.0 - output * output)


class Erf(Function):
    """Error function: 2 / sqrt(pi) times the integral of exp(-t²) from 0 to x."""

    def forward(self, x: Array) -> Array:
        return _ERF(x).astype(x.dtype)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad * exp(-(x * x)) * (2 / math.sqrt(math.pi))


_ERF = np.frompyfunc(math.erf, 1, 1)  # NumPy has none; about 0.1 s for a million elements


class LogSoftmax(Function):
    """x - log Σ exp(x) along an axis; the gradient is grad - softmax(x) Σ grad."""

    dim: int
    saves: tuple[str, ...] = ("output",)

    def forward(self, x: Array, dim: int) -> Array:
        self.dim = dim
        shifted = x - x.max(axis=dim, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=dim, keepdims=True))

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad - exp(output) * sum(grad, self.dim, keepdim=True)


def relu(x: V, inplace: bool = False) -> V:
    """Compute max(x, 0), elementwise: 0.0 (not -0.0) where x <= 0, with slope 0 at 0.

    Here and below `inplace` is accepted for scripts written for PyTorch and has no effect: the
    result is a new Tensor of the shape of x.
    """
    return Relu.apply(x)


def relu6(input: V, inplace: bool = False) -> V:
    """Compute min(max(x, 0), 6), elementwise; the slope is 1 strictly inside and 0 elsewhere."""
    return hardtanh(input, 0.0, 6.0)


def hardtanh(x: V, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> V:
    """Limit x to [min_val, max_val], elementwise; the slope is 1 strictly inside, 0 elsewhere."""
    if not min_val < max_val:
        raise ValueError(f"hardtanh: min_val {min_val} must be below max_val {max_val}")
    return Hardtanh.apply(x, low=float(min_val), high=float(max_val))


def leaky_relu(x: V, negative_slope: float = 0.01, inplace: bool = False) -> V:
    """Compute x where x > 0, else negative_slope * x, elementwise."""
    return LeakyRelu.apply(x, slope=float(negative_slope))


def softplus(x: V, beta: float = 1.0) -> V:
    """Compute log(1 + exp(beta x)) / beta, elementwise and without overflow."""
    if not beta > 0:
        raise ValueError(f"softplus: beta must be positive, got {beta!r}")
    return Softplus.apply(x, beta=float(beta))


def sigmoid(x: V) -> V:
    """Compute 1 / (1 + exp(-x)), elementwise and without overflow."""
    return Sigmoid.apply(x)


def tanh(x: V) -> V:
    """Compute the hyperbolic tangent, elementwise."""
    return Tanh.apply(x)


OF_NUMPY[np.tanh] = tanh


def hardsigmoid(x: V, inplace: bool = False) -> V:
    """Compute clamp(x + 3, 0, 6) / 6, elementwise: a piecewise linear sigmoid.

    MobileNetV3 (Howard et al. 2019, section 5.2).
    """
    return clamp(x + 3.0, 0.0, 6.0) / 6.0


def hardswish(x: V, inplace: bool = False) -> V:
    """Compute x hardsigmoid(x), elementwise, in PyTorch's order: x clamp(x + 3, 0, 6) / 6.

    MobileNetV3 (Howard et al. 2019, section 5.2).
    """
    return x * clamp(x + 3.0, 0.0, 6.0) / 6.0


def silu(input: V, inplace: bool = False) -> V:
    """Compute x sigmoid(x), elementwise; also called swish.

    Hendrycks and Gimpel 2016; Ramachandran et al. 2017.
    """
    return input * sigmoid(input)


def gelu(input: V, approximate: str = "none") -> V:
    """Compute x Φ(x) = x (1 + erf(x / sqrt(2))) / 2, with Φ the standard normal distribution.

    Hendrycks and Gimpel 2016. The error function is evaluated element by element in Python; the
    approximation is faster and has a packed form.

    Parameters
    ----------
    input : (...)
    approximate : 'none' or 'tanh'
        'tanh': x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))) / 2.
    """
    if approximate == "none":
        return input * 0.5 * (1.0 + Erf.apply(input * math.sqrt(0.5)))
    if approximate != "tanh":
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    inner = (input + input * input * input * 0.044715) * math.sqrt(2 / math.pi)
    return input * 0.5 * (1.0 + tanh(inner))


def log_softmax(x: V, dim: int = -1) -> V:
    """Compute x - log Σ exp(x), with the sum along the axis `dim`: (...) -> (...).

    Without overflow.
    """
    _check_dim("log_softmax", x, dim)
    return LogSoftmax.apply(x, dim=dim)


def softmax(x: V, dim: int = -1) -> V:
    """Compute exp(x) / Σ exp(x), with the sum along the axis `dim`: (...) -> (...).

    Without overflow.
    """
    _check_dim("softmax", x, dim)
    return exp(LogSoftmax.apply(x, dim=dim))


def _check_dim(name, x, dim):
    if not -np.ndim(x) <= dim < np.ndim(x):
        raise ValueError(f"{name}: dim {dim} is out of range for shape {np.shape(x)}")


def dropout(
    x: V,
    p: float = 0.5,
    training: bool = True,
    rng: np.random.Generator | None = None,
    *,
    inplace: bool = False,
) -> V:
    """In training, set each element to 0 with probability p and divide the others by 1 - p.

    Srivastava et al. 2014; the division keeps the expectation, so evaluation returns x unchanged.

    Parameters
    ----------
    x : (...)
    p : float
        In [0, 1).
    training : bool
    rng : numpy.random.Generator, optional
        Default: the generator that `tinybnn.manual_seed` seeds.
    inplace : bool
        Accepted and without effect, as in `relu`.
    """
    return _dropped("dropout", x, np.shape(x), p, training, rng)


def dropout2d(
    input: V,
    p: float = 0.5,
    training: bool = True,
    rng: np.random.Generator | None = None,
    *,
    inplace: bool = False,
) -> V:
    """Apply `dropout` to whole channels of images (N, C, H, W)."""
    shape = np.shape(input)
    if len(shape) != 4:
        raise ValueError(f"dropout2d: input must have the shape (N, C, H, W), got {shape}")
    return _dropped("dropout2d", input, (*shape[:2], 1, 1), p, training, rng)


def _dropped(name, x, shape, p, training, rng):
    """x; in training x times a mask of this shape, which broadcasts."""
    if not 0 <= p < 1:
        raise ValueError(f"{name}: p must be in [0, 1), got {p}")
    if not training or p == 0:
        return x
    rng = default_generator() if rng is None else rng
    kept = rng.random(shape, dtype=np.float32) >= p
    return x * (kept * (1.0 / (1.0 - p))).astype(as_array(x).dtype)
