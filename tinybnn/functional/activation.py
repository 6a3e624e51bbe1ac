"""Activations, softmax and dropout: functions of each element, or along one axis."""

from __future__ import annotations

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


class LogSoftmax(Function):
    saves = ("output",)

    def forward(self, x, dim):
        self.dim = dim
        shifted = x - x.max(axis=dim, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=dim, keepdims=True))

    def backward(self, grad, output, x):
        return grad - exp(output) * sum(grad, self.dim, keepdim=True)


def relu(x):
    """x where x > 0, else 0.0 (not -0.0); slope 0 at 0."""
    return Relu.apply(x)


def hardtanh(x, min_val=-1.0, max_val=1.0):
    """Limit to [min_val, max_val]; the slope is 1 strictly inside and 0 elsewhere."""
    if not min_val < max_val:
        raise ValueError(f"hardtanh: min_val {min_val} must be below max_val {max_val}")
    return Hardtanh.apply(x, low=float(min_val), high=float(max_val))


def leaky_relu(x, negative_slope=0.01):
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


def hardsigmoid(x):
    """clamp(x + 3, 0, 6) / 6: three straight lines for the sigmoid.

    MobileNetV3 (Howard et al. 2019, section 5.2).
    """
    return clamp(x + 3.0, 0.0, 6.0) / 6.0


def hardswish(x):
    """x hardsigmoid(x), in PyTorch's order: x clamp(x + 3, 0, 6) / 6.

    MobileNetV3 (Howard et al. 2019, section 5.2).
    """
    return x * clamp(x + 3.0, 0.0, 6.0) / 6.0


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


def dropout(x, p=0.5, training=True, rng=None):
    """Set each element to 0 with probability `p` and divide the others by 1 - p, in training.

    Parameters
    ----------
    rng : numpy.random.Generator, optional
        Source of randomness; the one that `tinybnn.manual_seed` restarts by default.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be in [0, 1), got {p}")
    if not training or p == 0:
        return x
    rng = default_generator() if rng is None else rng
    values = as_array(x)
    kept = rng.random(values.shape, dtype=np.float32) >= p
    return x * (kept * (1.0 / (1.0 - p))).astype(values.dtype)
