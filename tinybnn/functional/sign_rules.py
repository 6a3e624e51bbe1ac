"""Gradients of products of signs that can be differentiated again, on the kernels of the gradients.

A product of signs y = s vᵀ, with s = q(x) and v = r(w), has the gradients

    of x    q'(x) (grad v)        of w    r'(w) (gradᵀ s)

whose products are computed on bits like those of `functional.binary`. They are linear in grad and
in s or v, so their own gradients are products of the same kinds, with floats on both sides. The
composition of quantizers and convolution would give the same, but is evaluated on floats.
"""

from __future__ import annotations

from tinybnn.functional.binary import SignConv2d, SignLinear
from tinybnn.functional.composed import Composed, recorded_gradients
from tinybnn.functional.convolution import ConvInput, ConvWeight
from tinybnn.functional.linear import LinearInput, LinearWeight


class SignConvInput(ConvInput):
    """The gradient of the image, of a product with v, by that product's kernels."""

    def forward(self, grad, v, product):
        self.geometry = product.geometry
        return product.input_gradient(grad, None, v)


class SignConvWeight(ConvWeight):
    """The gradient of the weight, of a product with s, by that product's kernels."""

    def forward(self, s, grad, product):
        if product.runs_on_floats:
            return super().forward(s, grad, product.geometry)
        self.geometry = product.geometry
        return product.weight_gradient(grad, s, None)


class SignLinearInput(LinearInput):
    """The gradient of the rows, of a product with v, by that product's kernels."""

    def forward(self, grad, v, product):
        return product.input_gradient(grad, None, v)


class SignLinearWeight(LinearWeight):
    """The gradient of the weight, of a product with s, by that product's kernels."""

    def forward(self, s, grad, product):
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


def _gradients(function, of_input, of_weight, grad, x, weight):
    quantizer, levels = function.quantizers
    found = [None, None]
    if function.needs[0]:
        found[0] = of_input.apply(grad, levels(weight), product=function)
        if quantizer:
            found[0] = quantizer.gradient(found[0], x)
    if function.needs[1]:
        s = quantizer(x) if quantizer else x
        found[1] = levels.gradient(of_weight.apply(s, grad, product=function), weight)
    return tuple(found)
