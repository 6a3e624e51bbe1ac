"""Activations with learned constants for each channel, each in one pass over memory.

Composed of single operations, a learned threshold, slope or shift allocates an array of the size of
the image in each direction, and its gradient is a sum over the whole image: in networks such as
ReActNet and AdaBin this costs more than the convolutions on bits. Here each activation is one
`Function`; its composition is kept beside it as the rule for Tensors. Both give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import as_array, clamp, is_tracing, reshape
from tinybnn.functional.activation import PRelu, relu
from tinybnn.functional.composed import Composed
from tinybnn.functional.normalization import per_channel
from tinybnn.kernels import dispatch

if TYPE_CHECKING:
    from tinybnn.quantizers import Quantizer
    from tinybnn.typing import Array, V


class _Adapted(Composed):
    """An activation with learned constants, one for each channel (C,) or one for all (1,).

    A subclass defines its formula as a ``composition`` of simpler operations. It derives from one
    of the two forms below (a line or a value on each side of a threshold) and defines the form's
    four ``constants`` as functions of the learned ones; ``learned_gradients`` returns the gradients
    of the learned ones, given the sums of the form.
    """

    options: dict[str, Any]

    @classmethod
    def of(cls, x: V, *learned: V, **options: Any) -> V:
        """Apply the activation; a trace for the compiler records its simpler operations."""
        return (cls.composition if is_tracing() else cls.apply)(x, *learned, **options)

    def forward(self, x: Array, *learned: Array, **options: Any) -> Array:
        self.options = options
        return self.form(x, self.constants(*learned))

    def gradients(self, grad: Array, x: Array, *learned: Array) -> tuple[Array | None, ...]:
        grad_x, sums = self.form_gradient(grad, x, self.constants(*learned))
        return grad_x, *self.learned_gradients(sums, *learned)


class _TwoLines(_Adapted):
    """(positive if u > 0 else negative) u + offset, with u = x - shift.

    The constants are shift, positive, negative and offset. The four sums over each channel are: the
    gradient of the shift; grad u where u > 0; grad u elsewhere; and grad.
    """

    form = staticmethod(dispatch.two_lines)
    form_gradient = staticmethod(dispatch.two_lines_gradient)


class TwoValues(_Adapted):
    """high where u >= 0, else low, with u = (x - threshold) / width.

    The constants are threshold, width, low and high. With d = grad times the pseudo-gradient of
    `ApproxSign`, the four sums over each channel are: d; d u; grad where u >= 0; and grad
    elsewhere.
    """

    form = staticmethod(dispatch.two_values)
    form_gradient = staticmethod(dispatch.two_values_gradient)


class ScaleChannels(_TwoLines):
    """x scale: see `scale_channels`."""

    @staticmethod
    def composition(x: V, scale: V) -> V:
        return x * per_channel(scale, x)

    def constants(self, scale: Array) -> tuple[Array | float, ...]:
        return 0.0, scale, scale, -0.0

    def learned_gradients(self, sums: Array, scale: Array) -> tuple[Array, ...]:
        return (sums[1] + sums[2],)


class RSign(TwoValues):
    """sign(x - threshold): see `rsign`."""

    @staticmethod
    def composition(x: V, threshold: V, quantizer: Quantizer) -> V:
        return quantizer(x - per_channel(threshold, x))

    def constants(self, threshold: Array) -> tuple[Array | float, ...]:
        return threshold, 1.0, -1.0, 1.0

    def learned_gradients(self, sums: Array, threshold: Array) -> tuple[Array, ...]:
        return (-sums[0],)


class PReluOfChannels(_TwoLines):
    """x where x > 0, else weight x, with a weight for each channel: see `prelu`."""

    @staticmethod
    def composition(x: V, weight: V) -> V:
        return PRelu.apply(x, per_channel(weight, x))

    def constants(self, weight: Array) -> tuple[Array | float, ...]:
        return 0.0, 1.0, weight, -0.0

    def learned_gradients(self, sums: Array, weight: Array) -> tuple[Array, ...]:
        return (sums[2],)


class RPRelu(_TwoLines):
    """prelu(x - shift_in) + shift_out: see `rprelu`."""

    @staticmethod
    def composition(x: V, shift_in: V, weight: V, shift_out: V) -> V:
        u = x - per_channel(shift_in, x)
        return PRelu.apply(u, per_channel(weight, x)) + per_channel(shift_out, x)

    def constants(
        self, shift_in: Array, weight: Array, shift_out: Array
    ) -> tuple[Array | float, ...]:
        return shift_in, 1.0, weight, shift_out

    def learned_gradients(self, sums: Array, *learned: Array) -> tuple[Array, ...]:
        grad_shift, _, grad_negative, grad_offset = sums
        return grad_shift, grad_negative, grad_offset


class Maxout(_TwoLines):
    """positive max(x, 0) + negative min(x, 0): see `maxout`."""

    @staticmethod
    def composition(x: V, positive: V, negative: V) -> V:
        above, below = relu(x), clamp(x, max=0.0)
        # Adding 0.0 turns -0.0 into 0.0, so that the result at 0 does not depend on the slopes.
        return above * per_channel(positive, x) + below * per_channel(negative, x) + 0.0

    def constants(self, positive: Array, negative: Array) -> tuple[Array | float, ...]:
        return 0.0, positive, negative, 0.0

    def learned_gradients(self, sums: Array, *learned: Array) -> tuple[Array, ...]:
        return sums[1], sums[2]


def scale_channels(x: V, scale: V) -> V:
    """Multiply each channel of x by a factor.

    Parameters
    ----------
    x : (N, C, ...)
    scale : (C,)

    Returns
    -------
    (N, C, ...)
    """
    _check_channels("scale_channels", x, scale=scale)
    return ScaleChannels.of(x, scale)


def rsign(x: V, threshold: V, quantizer: Quantizer) -> V:
    """Compute sign(x - threshold), with a threshold for each channel.

    ReActNet (Liu et al. 2020, eq. 1).

    Parameters
    ----------
    x : (N, C, ...)
    threshold : (C,)
    quantizer : Quantizer
        The sign. A kernel exists for `quantizers.ApproxSign`; any other is composed with the shift.

    Returns
    -------
    (N, C, ...)
        Values -1 and +1.
    """
    _check_channels("rsign", x, threshold=threshold)
    if not quantizer.is_tent:
        return RSign.composition(x, threshold, quantizer)
    return RSign.of(x, threshold, quantizer=quantizer)


def prelu(x: V, weight: V) -> V:
    """Compute x where x > 0, else weight * x, with a learned weight (He et al. 2015, eq. 1).

    Parameters
    ----------
    x : (N, C, ...)
    weight : (1,) or (C,)
        One slope for all, or one for each channel.

    Returns
    -------
    (N, C, ...)
    """
    shape = np.shape(x)
    if np.ndim(weight) != 1 or np.shape(weight)[0] not in (1, *shape[1:2]):
        raise ValueError(
            f"prelu: weight must have the shape (1,) or (C,), got {np.shape(weight)} "
            f"for x of shape {shape}"
        )
    if np.shape(weight) == shape[1:2]:
        return PReluOfChannels.of(x, weight)
    return PRelu.apply(x, reshape(weight, (1,) * len(shape)))


def rprelu(x: V, shift_in: V, weight: V, shift_out: V) -> V:
    """Compute prelu(u) + shift_out with u = x - shift_in: a PReLU with learned shifts.

    u + shift_out where u > 0, else weight u + shift_out: ReActNet (Liu et al. 2020, eq. 2).

    Parameters
    ----------
    x : (N, C, ...)
    shift_in, weight, shift_out : (C,)

    Returns
    -------
    (N, C, ...)
    """
    _check_channels("rprelu", x, shift_in=shift_in, weight=weight, shift_out=shift_out)
    return RPRelu.of(x, shift_in, weight, shift_out)


def maxout(x: V, positive: V, negative: V) -> V:
    """Compute positive x where x > 0, else negative x: the activation of AdaBin's code.

    Tu et al. 2022. At x = 0 the result is 0.0 and the slope is `negative`.

    Parameters
    ----------
    x : (N, C, ...)
    positive, negative : (C,)
        Slopes of each channel.

    Returns
    -------
    (N, C, ...)
    """
    _check_channels("maxout", x, positive=positive, negative=negative)
    if not all([np.isfinite(as_array(slope)).all() for slope in (positive, negative)]):
        return Maxout.composition(x, positive, negative)  # gives NaN for 0 times inf
    return Maxout.of(x, positive, negative)


def _check_channels(name, x, **constants):
    shape = np.shape(x)
    for argument, values in constants.items():
        if len(shape) < 2 or np.shape(values) != shape[1:2]:
            raise ValueError(
                f"{name}: {argument} must have the shape (C,) for x of shape (N, C, ...), "
                f"got {np.shape(values)} for x of shape {shape}"
            )
