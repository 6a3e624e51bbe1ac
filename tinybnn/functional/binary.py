"""Products of signs with signs, in training: forward on bits, backward without multiplication.

A binary layer computes with ``sign(x)`` and ``sign(weight)``. As floats, the signs take 32 bits
each to say one; here they are packed, the forward pass is the XNOR product that the packed model
will use too, and the packed signs are what the backward pass gets to see. The sums of the forward
pass are integers, so nothing changes but time and memory: `packed_products` switches between the
two ways, and training gives the same bits either way.

The gradients are products of floats with signs (`kernels.training.sign_gradients`), times the
pseudo-gradients of the two quantizers. What is written as a rule, on Tensors, is the composition of
quantizers and convolution that these functions stand for.
"""

from __future__ import annotations

import contextlib
import functools
import math
from types import SimpleNamespace

import numpy as np

from tinybnn.autograd import Function, Tensor, as_array, pad, reshape
from tinybnn.autograd import grad as gradients
from tinybnn.functional.convolution import ConvInput, ConvWeight, Geometry, conv2d
from tinybnn.functional.linear import linear
from tinybnn.kernels.machine.memory import empty

_on_bits = True
_SMALL = 1 << 20  # products of a step below which packing costs more than BLAS on floats


@contextlib.contextmanager
def packed_products(enabled):
    """Let the forward pass of binary layers in training run on bits, or on floats.

    Parameters
    ----------
    enabled : bool
        At first True. False gives the same numbers by BLAS, on signs as floats.
    """
    global _on_bits
    previous, _on_bits = _on_bits, bool(enabled)
    try:
        yield
    finally:
        _on_bits = previous


def binary_conv2d(
    x, weight, input_quantizer, weight_quantizer, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
    groups=1, padding_mode="zeros",
):  # fmt: skip
    """Convolution of signs with signs, for training.

    Parameters
    ----------
    x : (N, C, H, W)
    weight : (O, C / groups, kh, kw), latent
    input_quantizer : Quantizer or None
        Gives signs; None where x holds signs already.
    weight_quantizer : Quantizer
        Its `levels` are signs.
    stride, padding, dilation : pairs of ints
    groups : int
    padding_mode : "zeros" or "ones"

    Returns
    -------
    (N, O, OH, OW)
        Equal, with its gradients (but for the rounding of sums), to `conv2d` of the quantized
        operands.
    """
    geometry = Geometry(np.shape(x), np.shape(weight), stride, padding, dilation, groups)
    options = {
        "quantizers": (input_quantizer, weight_quantizer), "geometry": geometry,
        "padding_mode": padding_mode,
    }  # fmt: skip
    work = math.prod(geometry.weight) * geometry.image[0] * math.prod(geometry.output)
    if as_array(x).dtype != np.float32 or work < _SMALL:
        return _conv2d_of_signs(x, weight, **options)
    return SignConv2d.apply(x, weight, **options)


def binary_linear(x, weight, input_quantizer, weight_quantizer):
    """Product of signs with signs, for training: x (..., K), weight (O, K) -> (..., O).

    Quantizers and result as in `binary_conv2d`.
    """
    quantizers = input_quantizer, weight_quantizer
    if as_array(x).dtype != np.float32 or np.size(as_array(x)) * np.shape(weight)[0] < _SMALL:
        return _linear_of_signs(x, weight, quantizers)
    *lead, features = np.shape(x)
    rows = x if len(lead) == 1 else reshape(x, (-1, features))
    result = SignLinear.apply(rows, weight, quantizers=quantizers)
    return result if len(lead) == 1 else reshape(result, (*lead, np.shape(weight)[0]))


# ----------------------------------------------------------------------- what the functions are for


def _signs(x, weight, quantizers):
    input_quantizer, weight_quantizer = quantizers
    return input_quantizer(x) if input_quantizer else x, weight_quantizer.levels()(weight)


def _linear_of_signs(x, weight, quantizers):
    return linear(*_signs(x, weight, quantizers))


def _conv2d_of_signs(x, weight, quantizers, geometry, padding_mode):
    x, weight = _signs(x, weight, quantizers)
    padding = geometry.padding
    if padding_mode == "ones" and padding != (0, 0):
        (ph, pw), padding = padding, (0, 0)
        x = pad(x, (pw, pw, ph, ph), 1.0)
    return conv2d(x, weight, None, geometry.stride, padding, geometry.dilation, geometry.groups)


class _Signs(Function):
    """A product of signs; a subclass says which: on words, on floats, and its two gradients."""

    fresh = True

    def backward(self, grad, output, x, weight):
        if isinstance(grad, Tensor):  # the rule: that of the composition
            inputs = [t for t, needed in zip((x, weight), self.needs, strict=True) if needed]
            found = iter(gradients(self.composition(x, weight), inputs, grad, create_graph=True))
            return tuple(next(found) if needed else None for needed in self.needs)
        results = [None, None]
        for i, (quantizer, operand) in enumerate(zip(self.quantizers, (x, weight), strict=True)):
            if self.needs[i]:
                result = self.weight_gradient(grad) if i else self.input_gradient(grad)
                results[i] = quantizer.gradient(result, operand) if quantizer else result
        return tuple(results)


class SignLinear(_Signs):
    """sign(x) @ sign(weight).T with the quantizers' pseudo-gradients."""

    def forward(self, x, weight, quantizers):
        kernels = _kernels()
        self.quantizers = quantizers[0], quantizers[1].levels()
        self.features = x.shape[1]
        self.x_bits, self.weight_bits = kernels.bits.pack(x), kernels.bits.pack(weight)
        if not _on_bits:
            return self.composition(x, weight)
        sums = kernels.xnor.xnor_matmul(self.x_bits, self.weight_bits, self.features)
        return sums.astype(np.float32)

    def composition(self, x, weight):
        return _linear_of_signs(x, weight, self.quantizers)

    def input_gradient(self, grad):
        kernels = _kernels().input_gradient
        return kernels.linear_input_gradient(grad, self.weight_bits, self.features)

    def weight_gradient(self, grad):
        kernels = _kernels().weight_gradient
        return kernels.linear_weight_gradient(grad, self.x_bits, self.features)


class SignConv2d(_Signs):
    """conv2d(sign(x), sign(weight)) with the quantizers' pseudo-gradients."""

    def forward(self, x, weight, quantizers, geometry, padding_mode):
        pack = _kernels().bits.pack
        self.quantizers = quantizers[0], quantizers[1].levels()
        self.geometry, self.padding_mode = geometry, padding_mode
        self.x_bits = pack(x.transpose(0, 2, 3, 1))  # (N, H, W, words)
        if self.is_depthwise:
            self.weight_bits = pack(weight[:, 0].transpose(1, 2, 0))  # (kh, kw, words)
        else:
            self.weight_bits = pack(weight.transpose(0, 2, 3, 1))  # (O, kh, kw, words)
        return self.on_words() if _on_bits else self.composition(x, weight)

    @property
    def is_depthwise(self):
        """Whether each channel has one filter, of a size that the kernel for such layers takes."""
        geometry, (filters, _, kh, kw) = self.geometry, self.geometry.weight
        has_one_each = geometry.groups == geometry.image[1] == filters
        return has_one_each and kh * kw <= _kernels().depthwise.MAX_TAPS

    def composition(self, x, weight):
        return _conv2d_of_signs(x, weight, self.quantizers, self.geometry, self.padding_mode)

    def on_words(self):
        kernels, geometry = _kernels(), self.geometry
        channels, *size = geometry.image[1:]
        options = {**geometry.options, "padding_mode": self.padding_mode}
        if self.is_depthwise:
            del options["groups"]
            product = kernels.depthwise.prepare(self.weight_bits, channels, size, **options)
        else:
            product = kernels.xnor.prepare_conv2d(self.weight_bits, channels, size, **options)
        shape = (*geometry.output, geometry.weight[0])
        layer = kernels.fused.prepare([product], kernels.fused.as_floats(shape))
        out = empty((geometry.image[0], *shape), np.float32)
        kernels.fused.run(layer, [self.x_bits], [out])
        return out.transpose(0, 3, 1, 2)

    def weight_signs(self):
        """The signs of the weight as floats, (O, C / groups, kh, kw)."""
        unpack, (filters, per_group, _, _) = _kernels().bits.unpack, self.geometry.weight
        if self.is_depthwise:
            return unpack(self.weight_bits, filters)[..., None].transpose(2, 3, 0, 1)
        return unpack(self.weight_bits, per_group).transpose(0, 3, 1, 2)

    def input_gradient(self, grad):
        geometry = self.geometry
        if geometry.weight[1] < _FEW:
            return ConvInput.apply(grad, self.weight_signs(), geometry=geometry)
        channels, *size = geometry.image[1:]
        pixels = _kernels().input_gradient.conv2d_input_gradient(
            _rows(grad), self.weight_bits, channels, size, **geometry.options
        )
        return pixels.transpose(0, 3, 1, 2)

    def weight_gradient(self, grad):
        geometry, channels = self.geometry, self.geometry.image[1]
        if geometry.weight[1] < _FEW:
            x = _kernels().bits.unpack(self.x_bits, channels).transpose(0, 3, 1, 2)
            return self.weight_gradient_of(x, grad)
        taps = _kernels().weight_gradient.conv2d_weight_gradient(
            _rows(grad), self.x_bits, channels, geometry.weight[2:],
            padding_mode=self.padding_mode, **geometry.options,
        )  # fmt: skip
        return taps.transpose(0, 3, 1, 2)

    def weight_gradient_of(self, x, grad):
        geometry = self.geometry
        if self.padding_mode == "ones":
            ph, pw = geometry.padding
            x = pad(x, (pw, pw, ph, ph), 1.0)
            geometry = Geometry(
                x.shape, geometry.weight, geometry.stride, (0, 0), geometry.dilation,
                geometry.groups,
            )  # fmt: skip
        return ConvWeight.apply(x, grad, geometry=geometry)


@functools.cache
def _kernels():
    """The modules of kernels, imported when a layer is trained first: Numba takes its time."""
    from tinybnn.kernels.floats import fused
    from tinybnn.kernels.signs import bits, depthwise, xnor
    from tinybnn.kernels.training import input_gradient, weight_gradient

    return SimpleNamespace(
        bits=bits, depthwise=depthwise, fused=fused, input_gradient=input_gradient,
        weight_gradient=weight_gradient, xnor=xnor,
    )  # fmt: skip


_FEW = 16  # channels of a group below which floats are faster than tables of signs


def _rows(grad):
    """(N, O, OH, OW) -> (N, OH, OW, O), contiguous."""
    return np.ascontiguousarray(grad.transpose(0, 2, 3, 1))
