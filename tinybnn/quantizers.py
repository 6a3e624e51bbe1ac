"""Quantizers: functions whose true derivative is useless, and the gradient used in its place.

The sign has derivative zero almost everywhere, so nothing in front of it would learn. A
straight-through estimator keeps the sign in the forward pass and replaces its derivative in the
backward pass by a *pseudo-gradient* (Bengio et al. 2013; Courbariaux et al. 2016).

Each class gives the three faces of one quantizer:

``forward(x)``
    what the network computes;
``pseudo_gradient(x)``
    the factor by which the incoming gradient is multiplied;
``surrogate(x)``
    the function whose *true* derivative is the pseudo-gradient. Training with the estimator
    follows the slope of the surrogate while computing with the sign; finite differences of the
    surrogate test the pseudo-gradient.

Call a quantizer like a function: ``ste_sign(x)`` on a Tensor records the pseudo-gradient.
"""

from __future__ import annotations

import numpy as np

from tinybnn.tensor import Function, abs, as_array, clamp, exp, where

__all__ = [
    "ApproxSign", "Quantizer", "SteSign", "SwishSign", "approx_sign", "get", "sign", "ste_sign",
    "swish_sign",
]  # fmt: skip


def sign(x):
    """+1 where x >= 0, else -1: sign(0) = sign(-0) = +1, and sign(NaN) = -1. Arrays only."""
    x = np.asarray(x)
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float32)
    return np.where(x >= 0, dtype.type(1), dtype.type(-1))


class Quantize(Function):
    """Apply a quantizer; its pseudo-gradient stands in for the derivative."""

    def forward(self, x, quantizer):
        self.quantizer = quantizer
        return quantizer.forward(x)

    def backward(self, grad, output, x):
        return grad * self.quantizer.pseudo_gradient(x)


class Quantizer:
    """Base class; see the module's text for the three methods of a subclass.

    Attributes
    ----------
    values : tuple of float
        The values that the forward function can take.
    """

    values = (-1.0, 1.0)

    def forward(self, x):
        """The quantized array."""
        raise NotImplementedError

    def pseudo_gradient(self, x):
        """The factor for the incoming gradient; x is an array or a Tensor."""
        raise NotImplementedError

    def surrogate(self, x):
        """The function whose derivative is the pseudo-gradient; x is an array or a Tensor."""
        raise NotImplementedError

    def __call__(self, x):
        return Quantize.apply(x, quantizer=self)

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class SteSign(Quantizer):
    """sign(x), with the gradient passed straight through where |x| <= clip_value.

    forward          sign(x)
    pseudo-gradient  1 where |x| <= clip_value, else 0
    surrogate        clamp(x, -clip_value, clip_value)

    The estimator of BinaryNet (Courbariaux et al. 2016, eq. 4); larq's ``ste_sign``.

    Parameters
    ----------
    clip_value : float
        Half the width of the region that learns.
    """

    def __init__(self, clip_value=1.0):
        _check_positive("SteSign", "clip_value", clip_value)
        self.clip_value = clip_value

    def forward(self, x):
        return sign(x)

    def pseudo_gradient(self, x):
        values = as_array(x)
        return (np.abs(values) <= self.clip_value).astype(values.dtype)

    def surrogate(self, x):
        return clamp(x, -self.clip_value, self.clip_value)


class ApproxSign(Quantizer):
    """sign(x), with the slope of a piecewise quadratic approximation.

    forward          sign(x)
    pseudo-gradient  2 - 2 |x| where |x| <= 1, else 0
    surrogate        2 x - x |x| where |x| <= 1, else sign(x)

    Bi-Real Net (Liu et al. 2018, eq. 6 to 8); also the activation of ReActNet.
    """

    def forward(self, x):
        return sign(x)

    def pseudo_gradient(self, x):
        return where(np.abs(as_array(x)) <= 1, 2.0 - 2.0 * abs(x), 0.0)

    def surrogate(self, x):
        x = clamp(x, -1.0, 1.0)
        return 2.0 * x - x * abs(x)


_FAR = 1000.0  # exp(-1000) is 0 in float64, and 0 * 1000 is 0 where 0 * inf would be NaN


class SwishSign(Quantizer):
    """sign(x), with the slope of the SignSwish function.

    forward          sign(x)
    pseudo-gradient  β (2 - β x tanh(β x / 2)) / (1 + cosh(β x))
    surrogate        2 σ(β x) (1 + β x (1 - σ(β x))) - 1

    BNN+ (Darabi et al. 2018, eq. 5 and 6); larq's ``swish_sign``.

    Parameters
    ----------
    beta : float
        Steepness β; the slope at 0 is β.
    """

    def __init__(self, beta=5.0):
        _check_positive("SwishSign", "beta", beta)
        self.beta = beta

    def forward(self, x):
        return sign(x)

    def pseudo_gradient(self, x):
        # Both factors are even in x. With e = exp(-|z|): tanh(|z|/2) = (1 - e) / (1 + e) and
        # 1 / (1 + cosh z) = 2 e / (1 + e)², which cannot overflow as cosh does.
        z = clamp(self.beta * abs(x), max=_FAR)
        e = exp(-1.0 * z)
        return (2.0 - z * (1.0 - e) / (1.0 + e)) * (2.0 * self.beta * e / ((1.0 + e) * (1.0 + e)))

    def surrogate(self, x):
        z = clamp(self.beta * x, -_FAR, _FAR)
        e = exp(-1.0 * abs(z))
        positive = as_array(x) >= 0
        sigmoid = where(positive, 1.0 / (1.0 + e), e / (1.0 + e))
        return 2.0 * sigmoid * (1.0 + z * (1.0 - sigmoid)) - 1.0


def _check_positive(owner, argument, value):
    if not value > 0:
        raise ValueError(f"{owner}: {argument} must be positive, got {value!r}")


# Ready-made instances with the defaults, under larq's names.
ste_sign = SteSign()
approx_sign = ApproxSign()
swish_sign = SwishSign()

_BY_NAME = {"ste_sign": ste_sign, "approx_sign": approx_sign, "swish_sign": swish_sign}


def get(quantizer):
    """A quantizer by its name; a Quantizer, or None (no quantization), is returned as it is."""
    if quantizer is None or isinstance(quantizer, Quantizer):
        return quantizer
    if isinstance(quantizer, str) and quantizer in _BY_NAME:
        return _BY_NAME[quantizer]
    raise ValueError(
        f"quantizer: expects one of {sorted(_BY_NAME)}, a Quantizer or None, got {quantizer!r}"
    )
