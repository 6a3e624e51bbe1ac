"""Activations whose constants are learned, in one pass over memory each.

A threshold, a slope or a shift for each channel is a line of code in a layer's ``forward``, and an
operation of the graph. Each makes an array of the size of the image, forward and backward, and has
a sum over the whole image for a gradient: for networks like ReActNet and AdaBin more work than
their convolutions on bits. Here such lines are one `Function`; their composition stays beside it,
as the rule for Tensors. What comes out is the composition's, bit for bit.
"""

from __future__ import annotations

import numpy as np

from tinybnn.autograd import as_array, clamp, is_tracing, reshape
from tinybnn.functional.activation import PRelu, relu
from tinybnn.functional.composed import Composed
from tinybnn.functional.normalization import per_channel
from tinybnn.kernels import dispatch


class _Adapted(Composed):
    """An activation with learned constants, one for each channel or one for all.

    A subclass gives its ``composition`` of simpler operations, which is its formula. It has one of
    the two forms below, on each side of a threshold a line or a value, with the four ``constants``
    that the learned ones become. ``of_learned`` are the gradients of the learned ones, given the
    sums of that form.
    """

    @classmethod
    def of(cls, x, *learned, **options):
        """The activation; a trace, which the compiler reads, shows its simpler operations."""
        return (cls.composition if is_tracing() else cls.apply)(x, *learned, **options)

    def forward(self, x, *learned, **options):
        self.options = options
        return self.form(x, self.constants(*learned))

    def gradients(self, grad, x, *learned):
        of_x, sums = self.form_gradient(grad, x, self.constants(*learned))
        return of_x, *self.of_learned(sums, *learned)


class _TwoLines(_Adapted):
    """(positive if u > 0 else negative) u + offset, with u = x - shift.

    The constants are shift, positive, negative and offset. The sums are the gradient in the shift;
    of grad u where u > 0; of grad u elsewhere; and of grad.
    """

    form = staticmethod(dispatch.two_lines)
    form_gradient = staticmethod(dispatch.two_lines_gradient)


class TwoValues(_Adapted):
    """High where u >= 0, else low, with u = (x - threshold) / width.

    The constants are threshold, width, low and high. With d, what comes through the tent of
    `ApproxSign`, the sums are those of d; of d u; of grad where u >= 0; and of grad elsewhere.
    """

    form = staticmethod(dispatch.two_values)
    form_gradient = staticmethod(dispatch.two_values_gradient)


class ScaleChannels(_TwoLines):
    @staticmethod
    def composition(x, scale):
        return x * per_channel(scale, x)

    def constants(self, scale):
        return 0.0, scale, scale, -0.0

    def of_learned(self, sums, scale):
        return (sums[1] + sums[2],)


class RSign(TwoValues):
    @staticmethod
    def composition(x, threshold, quantizer):
        return quantizer(x - per_channel(threshold, x))

    def constants(self, threshold):
        return threshold, 1.0, -1.0, 1.0

    def of_learned(self, sums, threshold):
        return (-sums[0],)


class PReluOfChannels(_TwoLines):
    @staticmethod
    def composition(x, weight):
        return PRelu.apply(x, per_channel(weight, x))

    def constants(self, weight):
        return 0.0, 1.0, weight, -0.0

    def of_learned(self, sums, weight):
        return (sums[2],)


class RPRelu(_TwoLines):
    @staticmethod
    def composition(x, shift_in, weight, shift_out):
        u = x - per_channel(shift_in, x)
        return PRelu.apply(u, per_channel(weight, x)) + per_channel(shift_out, x)

    def constants(self, shift_in, weight, shift_out):
        return shift_in, 1.0, weight, shift_out

    def of_learned(self, sums, *learned):
        of_shift, _, of_negative, of_offset = sums
        return of_shift, of_negative, of_offset


class Maxout(_TwoLines):
    @staticmethod
    def composition(x, positive, negative):
        above, below = relu(x), clamp(x, max=0.0)
        # 0.0 takes the sign from -0.0, so that a line through 0 gives 0.0 whatever its slope.
        return above * per_channel(positive, x) + below * per_channel(negative, x) + 0.0

    def constants(self, positive, negative):
        return 0.0, positive, negative, 0.0

    def of_learned(self, sums, *learned):
        return sums[1], sums[2]


def scale_channels(x, scale):
    """x times a factor for each channel.

    Parameters
    ----------
    x : (N, C, ...)
    scale : (C,)
    """
    _check_channels("scale_channels", x, scale=scale)
    return ScaleChannels.of(x, scale)


def rsign(x, threshold, quantizer):
    """sign(x - threshold), with a threshold for each channel (ReActNet, Liu et al. 2020, eq. 1).

    Parameters
    ----------
    x : (N, C, ...)
    threshold : (C,)
    quantizer : Quantizer
        The sign; the kernel knows `quantizers.ApproxSign`, any other is composed with the shift.
    """
    _check_channels("rsign", x, threshold=threshold)
    if not quantizer.is_tent:
        return RSign.composition(x, threshold, quantizer)
    return RSign.of(x, threshold, quantizer=quantizer)


def prelu(x, weight):
    """x where x > 0, else weight * x.

    Parameters
    ----------
    x : (N, C, ...)
    weight : (1,) or (C,)
        One slope for all, or one for each channel.
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


def rprelu(x, shift_in, weight, shift_out):
    """u where u > 0, else weight u, plus shift_out, with u = x - shift_in.

    ReActNet (Liu et al. 2020, eq. 2).

    Parameters
    ----------
    x : (N, C, ...)
    shift_in, weight, shift_out : (C,)
    """
    _check_channels("rprelu", x, shift_in=shift_in, weight=weight, shift_out=shift_out)
    return RPRelu.of(x, shift_in, weight, shift_out)


def maxout(x, positive, negative):
    """positive x where x > 0, else negative x: the activation of AdaBin's code (Tu et al. 2022).

    0.0 where x is 0. The slope there is the negative one.

    Parameters
    ----------
    x : (N, C, ...)
    positive, negative : (C,)
    """
    _check_channels("maxout", x, positive=positive, negative=negative)
    if not all([np.isfinite(as_array(slope)).all() for slope in (positive, negative)]):
        return Maxout.composition(x, positive, negative)  # in which 0 times inf is NaN
    return Maxout.of(x, positive, negative)


def _check_channels(name, x, **constants):
    shape = np.shape(x)
    for argument, values in constants.items():
        if len(shape) < 2 or np.shape(values) != shape[1:2]:
            raise ValueError(
                f"{name}: {argument} must have the shape (C,) for x of shape (N, C, ...), "
                f"got {np.shape(values)} for x of shape {shape}"
            )
