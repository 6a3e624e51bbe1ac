"""Twice differentiable gradients of products of signs, computed by the kernels of the gradients.

A product of signs y = s vᵀ, with s = q(x) and v = r(w), has the gradients

    x:  q'(x) (grad v)        w:  r'(w) (gradᵀ s)

whose products are computed on bits as in `functional.binary`. They are linear in grad and in s or
v, so their own gradients are products of the same kinds, with floats on both sides. The composition
of quantizers and convolution would give the same, but is evaluated on floats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinybnn.functional.binary import SignConv2d, SignLinear
from tinybnn.functional.composed import Composed, recorded_gradients
from tinybnn.functional.convolution import ConvInput, ConvWeight
from tinybnn.functional.linear import LinearInput, LinearWeight

if TYPE_CHECKING:
    from tinybnn.functional.convolution import Geometry
    from tinybnn.typing import Array


class SignConvInput(ConvInput):
    """The gradient of the image, grad v, by the kernels of the forward product; as `ConvInput`."""

    geometry: Geometry

    def forward(self, grad: Array, v: Array, product: SignConv2d) -> Array:
        self.geometry = product.geometry
        return product.input_gradient(grad, None, v)


class SignConvWeight(ConvWeight):
    """The gradient of the weight, gradᵀ s, by the kernels of the forward product."""

    geometry: Geometry

    def forward(self, s: Array, grad: Array, product: SignConv2d) -> Array:
        if product.runs_on_floats:
            return super().forward(s, grad, product.geometry)
        self.geometry = product.geometry
        return product.weight_gradient(grad, s, None)


class SignLinearInput(LinearInput):
    """The gradient of the rows, grad v, by the kernels of the forward product."""

    def forward(self, grad: Array, v: Array, product: SignLinear) -> Array:
        return product.input_gradient(grad, None, v)


class SignLinearWeight(LinearWeight):
    """The gradient of the weight, gradᵀ s, by the kernels of the forward product."""

    def forward(self, s: Array, grad: Array, product: SignLinear) -> Array:
        if not product.has_words:
            return super().forward(s, grad)
        return product.weight_gradient(grad, s, None)


@recorded_gradients.register
def _(function: SignConv2d, grad, x, weight):
    if function.padding_mode == "ones" and function.geometry.padding != (0, 0):
        return recorded_gradients.dispatch(Composed)(function, grad, x, weight)
    return _gradients(function, SignConvInput, SignConvWeight, grad, x, weight)


@recorded_gradients.register
def _(function: SignLinear, grad, x, weight):
    return _gradients(function, SignLinearInput, SignLinearWeight, grad, x, weight)


def _gradients(function, input_rule, weight_rule, grad, x, weight):
    quantizer, levels = function.quantizers
    results = [None, None]
    if function.needs[0]:
        results[0] = input_rule.apply(grad, levels(weight), product=function)
        if quantizer:
            results[0] = quantizer.gradient(results[0], x)
    if function.needs[1]:
        s = quantizer(x) if quantizer else x
        results[1] = levels.gradient(weight_rule.apply(s, grad, product=function), weight)
    return tuple(results)
