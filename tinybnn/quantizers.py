"""Quantizers: step functions, and the gradients used in place of their derivatives.

The derivative of the sign is zero almost everywhere, so no layer in front of it would learn. A
straight-through estimator keeps the sign in the forward pass and replaces its derivative in the
backward pass by a *pseudo-gradient* (Bengio et al. 2013; Courbariaux et al. 2016).

Each class defines three functions of an array x of any shape; each result has the shape of x:

``forward(x)``
    the quantized values, which the network computes with;
``pseudo_gradient(x)``
    the factor by which the incoming gradient is multiplied;
``surrogate(x)``
    the function whose *true* derivative is the pseudo-gradient. Training with the estimator
    follows the slope of the surrogate while computing with the sign; finite differences of the
    surrogate test the pseudo-gradient.

Call a quantizer like a function: ``ste_sign(x)`` on a Tensor records the pseudo-gradient. Within
`surrogates` a call computes the surrogate instead: the gradient of the network is then its true
gradient, except for the values that an estimator treats as constants.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import Function, Variable, abs, as_array, clamp, exp, plain, where
from tinybnn.kernels import dispatch
from tinybnn.kernels.machine.memory import empty_like

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike

    from tinybnn.typing import Array, V

__all__ = [
    "ApproxSign", "BitNetTernary", "DoReFaActivation", "DoReFaWeight", "EdeSign",
    "MagnitudeAwareSign", "Quantize", "Quantizer", "SteHeaviside", "SteSign", "SteTern",
    "SwishSign", "TentGradient", "approx_sign", "get", "magnitude", "sign", "ste_sign",
    "surrogates", "swish_sign",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else


def sign(x: ArrayLike) -> Array:
    """Return +1 where x >= 0, else -1, as an array of the shape of x.

    sign(0) = sign(-0) = +1, and sign(NaN) = -1. The dtype is that of x if it is a float, else
    float32. For arrays only: on Tensors use a quantizer, such as `ste_sign`.
    """
    x = np.asarray(x)
    if (signs := dispatch.sign(x)) is not None:
        return signs
    dtype = x.dtype if x.dtype.kind == "f" else np.dtype(np.float32)
    return np.where(x >= 0, dtype.type(1), dtype.type(-1))


class _State(threading.local):
    computes_surrogates = False


_state = _State()


@contextlib.contextmanager
def surrogates() -> Iterator[None]:
    """Context manager: let quantizers and binary layers compute their surrogates.

    All values are floats then: no layer runs on bits. Gradients are those of the surrogates. The
    scale of a quantizer or a layer is unchanged, and still a constant to the gradient. It affects
    only the thread that entered it.

    Examples
    --------
    >>> with surrogates():
    ...     ste_sign(np.array([-3.0, 0.25]))
    array([-1.  ,  0.25])
    """
    before, _state.computes_surrogates = _state.computes_surrogates, True
    try:
        yield
    finally:
        _state.computes_surrogates = before


class Quantize(Function):
    """Apply a quantizer, with its pseudo-gradient as the derivative."""

    quantizer: Quantizer

    def forward(self, x: Array, quantizer: Quantizer) -> Array:
        self.quantizer = quantizer
        return quantizer.surrogate(x) if _state.computes_surrogates else quantizer.forward(x)

    def backward(self, grad: V, output: V, x: V) -> V:
        return self.quantizer.gradient(grad, x)


class Quantizer:
    """Base class; the module's docstring describes the three methods of a subclass.

    Attributes
    ----------
    bits : int
        Number of bits of a value in memory.
    values : tuple of float or None
        The possible values, without the `scale`; None unless they are small integers.
    is_sign : bool
        Whether its forward is `sign`, which a kernel packs as bits; False within `surrogates`.
    is_tent : bool
        Whether it is the sign with the pseudo-gradient of `ApproxSign`, for which kernels exist.
    """

    values: tuple[float, ...] | None = (-1.0, 1.0)
    is_sign: bool = False

    @property
    def is_tent(self) -> bool:
        has_its_slope = _is(self.pseudo_gradient, ApproxSign.pseudo_gradient)
        return self.is_sign and has_its_slope and _is(self.gradient, Quantizer.gradient)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, plain(value))  # NumPy scalars would promote to float64

    @property
    def gives_signs(self) -> bool:
        """Whether its values are -1 and 1, without a scale."""
        return self.values == (-1.0, 1.0) and self.levels() is self

    @property
    def bits(self) -> int:
        """Number of bits of a value in memory: 1 for two values, 2 for three (sign and mask)."""
        return 1 if len(self.values) == 2 else 2

    def scale(self, x: Array) -> Array | None:
        """Return the factor between `levels` and the forward function, or None if it has none.

        For x (O, ...) an array (O,), one value for each filter, or (1,), one for all. A layer
        multiplies its integer accumulators by it, not its weights, so that the sums stay exact.
        """
        return None

    def levels(self) -> Quantizer:
        """Return the quantizer without its `scale`."""
        return self

    def forward(self, x: Array) -> Array:
        """Return the quantized array, of the shape and dtype of x."""
        raise self._not_written(
            "forward(self, x)", "the quantized array: np.where(x >= 0, 1.0, -1.0)"
        )

    def pseudo_gradient(self, x: V) -> V:
        """Return the factor for the incoming gradient, of the shape of x (array or Tensor)."""
        raise self._not_written(
            "pseudo_gradient(self, x)",
            "the factor for the incoming gradient, an array of x's shape: 1.0 * (np.abs(x) <= 1)",
        )

    def gradient(self, grad: V, x: V) -> V:
        """Compute ``grad * pseudo_gradient(x)`` on arrays or Tensors of the same shape.

        A kernel computes it on large arrays in one pass.
        """
        kernel = _KERNELS.get(getattr(self.pseudo_gradient, "__func__", None))
        result = kernel(self, grad, x) if kernel else None
        return grad * self.pseudo_gradient(x) if result is None else result

    def surrogate(self, x: V) -> V:
        """Compute the function whose derivative is the pseudo-gradient, for an array or Tensor."""
        raise self._not_written(
            "surrogate(self, x)",
            "the function whose derivative is the pseudo-gradient: np.clip(x, -1, 1)",
        )

    def _not_written(self, method, result):
        return NotImplementedError(
            f"{type(self).__name__}: write the method {method}, which returns {result}"
        )

    def __call__(self, x: V) -> V:
        return Quantize.apply(x, quantizer=self)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name.strip('_')}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


def _is(method, function):
    """Whether a bound method is this function, not an override."""
    return getattr(method, "__func__", None) is function


_KERNELS = {}  # pseudo-gradient -> kernel for its product with a gradient


def _has_kernel(kernel):
    """Decorate a pseudo-gradient: ``kernel(self, grad, x)`` may compute its product with grad.

    The kernel is registered for the function, so a subclass that overrides the pseudo-gradient does
    not inherit the kernel.
    """

    def decorate(pseudo_gradient):
        _KERNELS[pseudo_gradient] = kernel
        return pseudo_gradient

    return decorate


def _gated(quantizer, grad, x):
    return dispatch.gated_gradient(grad, x, -quantizer.clip_value, quantizer.clip_value)


class TentGradient(Function):
    """grad times the pseudo-gradient of `ApproxSign` (2 - 2 |x| where |x| <= 1), in one pass."""

    fresh = True

    def forward(self, grad: Array, x: Array) -> Array:
        return ApproxSign().gradient(grad, x)

    def backward(self, grad: V, output: V, g: V, x: V) -> tuple[V | None, V | None]:
        grad_x = None
        if self.needs[1]:  # times the second derivative: -2 sign(x) where |x| <= 1, and 0 at 0
            values = as_array(x)
            grad_x = np.sign(values, out=empty_like(values))
            grad_x *= -2
            grad_x = SteSign().gradient(grad_x, values)
            for factor in (grad, g):
                is_array = isinstance(factor, np.ndarray) and isinstance(grad_x, np.ndarray)
                grad_x = np.multiply(grad_x, factor, out=grad_x) if is_array else grad_x * factor
        return ApproxSign().gradient(grad, x) if self.needs[0] else None, grad_x


def _through_tent(quantizer, grad, x):
    if isinstance(grad, Variable) or isinstance(x, Variable):
        return TentGradient.apply(grad, x)
    return dispatch.tent_gradient(grad, x)


class _Sign(Quantizer):
    """Base of quantizers whose forward is the sign."""

    def forward(self, x: Array) -> Array:
        return sign(x)

    @property
    def is_sign(self):  # False if a subclass or an instance overrides forward
        return _is(self.forward, _Sign.forward) and not _state.computes_surrogates


class SteSign(_Sign):
    """sign(x), with the gradient passed straight through where |x| <= clip_value.

    forward          sign(x)
    pseudo-gradient  1 where |x| <= clip_value, else 0
    surrogate        clamp(x, -clip_value, clip_value)

    The estimator of BinaryNet (Courbariaux et al. 2016, eq. 4); larq's ``ste_sign``.

    Parameters
    ----------
    clip_value : float
        Half the width of the interval with a gradient.
    """

    clip_value: float

    def __init__(self, clip_value: float = 1.0) -> None:
        _check_positive("SteSign", "clip_value", clip_value)
        self.clip_value = clip_value

    @_has_kernel(_gated)
    def pseudo_gradient(self, x: V) -> V:
        values = as_array(x)
        return (np.abs(values) <= self.clip_value).astype(values.dtype)

    def surrogate(self, x: V) -> V:
        return clamp(x, -self.clip_value, self.clip_value)


class ApproxSign(_Sign):
    """sign(x), with the derivative of a piecewise quadratic approximation.

    forward          sign(x)
    pseudo-gradient  2 - 2 |x| where |x| <= 1, else 0
    surrogate        2 x - x |x| where |x| <= 1, else sign(x)

    Bi-Real Net (Liu et al. 2018, eq. 6 to 8); also the activation of ReActNet.
    """

    @_has_kernel(_through_tent)
    def pseudo_gradient(self, x: V) -> V:
        return where(np.abs(as_array(x)) <= 1, 2.0 - 2.0 * abs(x), 0.0)

    def surrogate(self, x: V) -> V:
        x = clamp(x, -1.0, 1.0)
        return 2.0 * x - x * abs(x)


_FAR = 1000.0  # exp(-1000) is 0 in float64, and 0 * 1000 is 0 where 0 * inf would be NaN


class SwishSign(_Sign):
    """sign(x), with the derivative of the SignSwish function.

    forward          sign(x)
    pseudo-gradient  β (2 - β x tanh(β x / 2)) / (1 + cosh(β x))
    surrogate        2 σ(β x) (1 + β x (1 - σ(β x))) - 1

    BNN+ (Darabi et al. 2018, eq. 5 and 6); larq's ``swish_sign``.

    Parameters
    ----------
    beta : float
        Steepness β; the slope at 0 is β.
    """

    beta: float

    def __init__(self, beta: float = 5.0) -> None:
        _check_positive("SwishSign", "beta", beta)
        self.beta = float(beta)

    def pseudo_gradient(self, x: V) -> V:
        # Both factors are even in x. With e = exp(-|z|): tanh(|z|/2) = (1 - e) / (1 + e) and
        # 1 / (1 + cosh z) = 2 e / (1 + e)², which cannot overflow as cosh does.
        z = clamp(self.beta * abs(x), max=_FAR)
        e = exp(-1.0 * z)
        return (2.0 - z * (1.0 - e) / (1.0 + e)) * (2.0 * self.beta * e / ((1.0 + e) * (1.0 + e)))

    def surrogate(self, x: V) -> V:
        z = clamp(self.beta * x, -_FAR, _FAR)
        e = exp(-1.0 * abs(z))
        positive = as_array(x) >= 0
        sigmoid = where(positive, 1.0 / (1.0 + e), e / (1.0 + e))
        return 2.0 * sigmoid * (1.0 + z * (1.0 - sigmoid)) - 1.0


class EdeSign(_Sign):
    """sign(x), with a pseudo-gradient that sharpens from a line to the sign during training.

    forward          sign(x)
    pseudo-gradient  k t (1 - tanh²(t x)),  k = max(1 / t, 1)
    surrogate        k tanh(t x)

    Error decay estimator of IR-Net (Qin et al. 2020, eq. 9 to 11). `optim.EdeSchedule` changes t.

    Parameters
    ----------
    t : float
        Steepness; IR-Net goes from 0.01 (AdaBin's code: 0.001) to 10, evenly in log t.
    """

    t: float

    def __init__(self, t: float = 1.0) -> None:
        _check_positive("EdeSign", "t", t)
        self.t = t

    @property
    def k(self) -> float:
        """max(1 / t, 1): the height of the surrogate."""
        return max(1.0 / self.t, 1.0)

    def pseudo_gradient(self, x: V) -> V:
        e = exp(-2.0 * self.t * abs(x))  # 1 - tanh²(z) = 4 e / (1 + e)², e = exp(-2 |z|)
        return (4.0 * self.k * self.t) * e / ((1.0 + e) * (1.0 + e))

    def surrogate(self, x: V) -> V:
        e = exp(-2.0 * self.t * abs(x))
        return self.k * sign(as_array(x)) * (1.0 - e) / (1.0 + e)


class SteHeaviside(Quantizer):
    """1 where x > 0, else 0, with a straight-through gradient.

    forward          1 where x > 0, else 0
    pseudo-gradient  1 where |x| <= clip_value, else 0
    surrogate        clamp(x, -clip_value, clip_value)

    larq's ``ste_heaviside``.
    """

    clip_value: float
    values: tuple[float, ...] | None = (0.0, 1.0)

    def __init__(self, clip_value: float = 1.0) -> None:
        _check_positive("SteHeaviside", "clip_value", clip_value)
        self.clip_value = clip_value

    def forward(self, x: Array) -> Array:
        return (x > 0).astype(x.dtype)

    pseudo_gradient = SteSign.pseudo_gradient
    surrogate = SteSign.surrogate


class SteTern(Quantizer):
    """-1, 0 or +1, with a straight-through gradient.

    forward          sign(x) where |x| > Δ, else 0
    pseudo-gradient  1 where |x| <= clip_value, else 0
    surrogate        clamp(x, -clip_value, clip_value)

    Δ = 0.7 mean |x| over the whole tensor: Ternary Weight Networks (Li et al. 2016, eq. 6);
    larq's ``ste_tern``.

    Parameters
    ----------
    threshold : float, optional
        A fixed Δ.
    clip_value : float
    """

    threshold: float | None
    clip_value: float
    values: tuple[float, ...] | None = (-1.0, 0.0, 1.0)

    def __init__(self, threshold: float | None = None, clip_value: float = 1.0) -> None:
        _check_positive("SteTern", "clip_value", clip_value)
        if threshold is not None and not threshold >= 0:
            raise ValueError(f"SteTern: threshold must be >= 0, got {threshold!r}")
        self.threshold, self.clip_value = threshold, clip_value

    def forward(self, x: Array) -> Array:
        delta = 0.7 * np.abs(x).mean() if self.threshold is None else self.threshold
        return np.where(np.abs(x) > delta, sign(x), x.dtype.type(0))

    pseudo_gradient = SteSign.pseudo_gradient
    surrogate = SteSign.surrogate


class _Scaled(Quantizer):
    """A quantizer whose forward is a scale times small integers.

    A subclass defines ``scale(x)``, ``unscaled(x)`` (the integers) and its gradient. The scale is a
    constant to the gradient, and to the finite differences that test it.
    """

    def forward(self, x: Array) -> Array:
        return self.unscaled(x) * _per_filter(self.scale(x), x)

    def levels(self) -> Quantizer:
        return _Levels(self)


class _Levels(Quantizer):
    """A scaled quantizer without its scale, in the forward pass and in the gradient."""

    def __init__(self, scaled):
        self.scaled, self.values = scaled, scaled.values

    @property
    def is_sign(self):
        is_sign = _is(self.scaled.unscaled, MagnitudeAwareSign.unscaled)
        return is_sign and not _state.computes_surrogates

    def _inverse_scale(self, x):
        scale = self.scaled.scale(as_array(x))
        return 1 / _per_filter(np.where(scale == 0, 1, scale), x)

    def forward(self, x):
        return self.scaled.unscaled(x)

    def pseudo_gradient(self, x):
        return self.scaled.pseudo_gradient(x) * self._inverse_scale(x)

    def surrogate(self, x):
        return self.scaled.surrogate(x) * self._inverse_scale(x)


def magnitude(x: Array) -> Array:
    """Compute the mean |x| of each filter (first axis): (O, ...) -> (O,)."""
    return np.abs(x).reshape(len(x), -1).mean(1)


def _per_filter(scale, x):
    """Reshape (O,) or (1,) to (O, 1, ...) or (1, 1, ...), which broadcasts with x (O, ...)."""
    return scale.reshape((-1,) + (1,) * (np.ndim(x) - 1))


class MagnitudeAwareSign(_Scaled):
    """sign(x) times the mean magnitude of its filter.

    forward          m sign(x),  m = mean |x| over the filter (first axis)
    pseudo-gradient  m where |x| <= clip_value, else 0; 1 instead of m with scale_gradient=False
    surrogate        m clamp(x, -clip_value, clip_value)

    XNOR-Net (Rastegari et al. 2016, eq. 6); larq's ``magnitude_aware_sign``. m is a constant to
    the gradient. ReActNet's code leaves m out of the gradient too: scale_gradient=False.

    Parameters
    ----------
    clip_value : float
    scale_gradient : bool
    """

    clip_value: float
    scale_gradient: bool

    def __init__(self, clip_value: float = 1.0, scale_gradient: bool = True) -> None:
        _check_positive("MagnitudeAwareSign", "clip_value", clip_value)
        self.clip_value, self.scale_gradient = clip_value, scale_gradient

    def scale(self, x: Array) -> Array:
        return magnitude(x)

    def unscaled(self, x: Array) -> Array:
        return sign(x)

    def _factor(self, x):
        return _per_filter(magnitude(as_array(x)), x) if self.scale_gradient else 1.0

    def pseudo_gradient(self, x: V) -> V:
        return SteSign(self.clip_value).pseudo_gradient(x) * self._factor(x)

    def surrogate(self, x: V, factor: Array | float | None = None) -> V:
        """Compute m clamp(x, ...); `factor` is a fixed m, such as that of another x."""
        factor = self._factor(x) if factor is None else factor
        return SteSign(self.clip_value).surrogate(x) * factor


class BitNetTernary(_Scaled):
    """-m, 0 or +m, where m is the mean magnitude of the whole tensor.

    forward          m clamp(round(x / m), -1, 1),  m = max(mean |x|, 1e-5)
    pseudo-gradient  1
    surrogate        x

    BitNet b1.58 (Ma et al. 2024, eq. 1 to 3).
    """

    values: tuple[float, ...] | None = (-1.0, 0.0, 1.0)

    def scale(self, x: Array) -> Array:
        return np.maximum(np.abs(x).mean(), x.dtype.type(1e-5)).reshape(1)

    def unscaled(self, x: Array) -> Array:
        return np.clip(np.round(x / self.scale(x)), -1, 1)

    def pseudo_gradient(self, x: V) -> V:
        return np.ones_like(as_array(x))

    def surrogate(self, x: V) -> V:
        return x * 1.0


class DoReFaActivation(Quantizer):
    """k-bit activations in [0, 1].

    forward          round((2^k - 1) clamp(x, 0, 1)) / (2^k - 1)
    pseudo-gradient  1 where 0 <= x <= 1, else 0
    surrogate        clamp(x, 0, 1)

    DoReFa-Net (Zhou et al. 2016, eq. 5 and 6).

    Parameters
    ----------
    bits : int
    """

    values: tuple[float, ...] | None = None

    def __init__(self, bits: int = 2) -> None:
        self._bits = _check_bits("DoReFaActivation", bits)

    @property
    def bits(self) -> int:
        """Number of bits k of a value."""
        return self._bits

    def forward(self, x: Array) -> Array:
        return _round_to(self.bits, np.clip(x, 0, 1))

    def pseudo_gradient(self, x: V) -> V:
        values = as_array(x)
        return ((values >= 0) & (values <= 1)).astype(values.dtype)

    def surrogate(self, x: V) -> V:
        return clamp(x, 0.0, 1.0)


class DoReFaWeight(Quantizer):
    """k-bit weights in [-1, 1].

    forward          2 q(tanh(x) / (2 max |tanh(x)|) + 1/2) - 1,  q rounding to k bits
    pseudo-gradient  (1 - tanh²(x)) / max |tanh(x)|
    surrogate        tanh(x) / max |tanh(x)|

    DoReFa-Net (Zhou et al. 2016, eq. 9). The maximum is a constant to the gradient.

    Parameters
    ----------
    bits : int
    """

    values: tuple[float, ...] | None = None

    def __init__(self, bits: int = 2) -> None:
        self._bits = _check_bits("DoReFaWeight", bits)

    @property
    def bits(self) -> int:
        """Number of bits k of a value."""
        return self._bits

    def largest(self, x: Array) -> float:
        """Return max |tanh(x)| over the whole tensor, or 1 for a tensor of zeros."""
        return np.tanh(np.abs(x).max()) or x.dtype.type(1)

    def forward(self, x: Array) -> Array:
        return 2 * _round_to(self.bits, np.tanh(x) / (2 * self.largest(x)) + 0.5) - 1

    def pseudo_gradient(self, x: V) -> V:
        e = exp(-2.0 * abs(x))  # 1 - tanh²(x) = 4 e / (1 + e)²
        return 4.0 * e / ((1.0 + e) * (1.0 + e)) * (1.0 / float(self.largest(as_array(x))))

    def surrogate(self, x: V, largest: float | None = None) -> V:
        """Compute the surrogate; `largest` is a fixed maximum, such as that of another x."""
        largest = self.largest(as_array(x)) if largest is None else largest
        e = exp(-2.0 * abs(x))
        return sign(as_array(x)) * (1.0 - e) / (1.0 + e) * (1.0 / float(largest))


def _round_to(bits, x):
    """Round values in [0, 1] to multiples of 1 / (2^bits - 1)."""
    steps = 2**bits - 1
    return np.round(x * steps) / x.dtype.type(steps)


def _check_bits(owner, bits):
    if not isinstance(bits, int | np.integer) or not 1 <= bits <= 16:
        raise ValueError(f"{owner}: bits must be an int in 1..16, got {bits!r}")
    return int(bits)


def _check_positive(owner, argument, value):
    if not value > 0:
        raise ValueError(f"{owner}: {argument} must be positive, got {value!r}")


# Ready-made instances with the defaults, under larq's names.
ste_sign: SteSign = SteSign()
approx_sign: ApproxSign = ApproxSign()
swish_sign: SwishSign = SwishSign()

# Quantizers by name. Each call of `get` makes a new instance: a schedule changes EdeSign's t.
_BY_NAME = {
    "ste_sign": SteSign,
    "approx_sign": ApproxSign,
    "swish_sign": SwishSign,
    "ede_sign": EdeSign,
    "magnitude_aware_sign": MagnitudeAwareSign,
    "ste_heaviside": SteHeaviside,
    "ste_tern": SteTern,
    "bitnet_ternary": BitNetTernary,
    "dorefa_activation": DoReFaActivation,
    "dorefa_weight": DoReFaWeight,
}


def get(quantizer: str | Quantizer | None) -> Quantizer | None:
    """Return the quantizer of a name; a Quantizer or None (no quantization) is returned as it is.

    Parameters
    ----------
    quantizer : str, Quantizer or None

    Returns
    -------
    Quantizer or None
    """
    if quantizer is None or isinstance(quantizer, Quantizer):
        return quantizer
    if isinstance(quantizer, str) and quantizer in _BY_NAME:
        return _BY_NAME[quantizer]()
    raise ValueError(
        f"quantizer: expects one of {sorted(_BY_NAME)}, a Quantizer or None, got {quantizer!r}"
    )
