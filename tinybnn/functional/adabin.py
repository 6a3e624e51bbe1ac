"""AdaBin (Tu et al. 2022): adaptive binary sets, two learned values for weights and activations.

With signs s and v, the activations are a = α_a (s + β_a) and the weights ŵ = α_w v + β_w. Their
sum over a window expands into sums of signs, which are integers,

    Σ a ŵ = α_a (α_w Σ s v + β_w Σ s + β_a (α_w Σ v + β_w Σ 1)),

over the taps inside the image. Hence the layer computes the same floats in training, in eval mode
and packed. The form of a is that of the authors' code; the paper has α_a s + β_a.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import Function, Tensor, broadcast_to, is_tracing, mean, reshape, sqrt
from tinybnn.functional.adapted import TwoValues
from tinybnn.functional.binary import binary_conv2d
from tinybnn.functional.composed import Composed
from tinybnn.functional.convolution import (
    ConvInput,
    ConvWeight,
    conv2d,
    empty_image,
    geometry_of,
)
from tinybnn.kernels import dispatch
from tinybnn.kernels.machine.memory import empty_like

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinybnn.functional.convolution import Geometry
    from tinybnn.quantizers import Quantizer
    from tinybnn.typing import Array, V


class AdaptedSet(TwoValues):
    """scale (s + offset) with s = sign((x - offset) / scale): see `adapted_set`."""

    @staticmethod
    def composition(x: V, scale: V, offset: V, quantizer: Quantizer) -> V:
        return scale * (quantizer((x - offset) / scale) + offset)

    def constants(self, scale: Array, offset: Array) -> tuple[Array, ...]:
        return offset, scale, scale * (offset - 1), scale * (1 + offset)

    def learned_gradients(self, sums: Array, scale: Array, offset: Array) -> tuple[Array, ...]:
        # a = scale (s + offset), s = sign(u), u = (x - offset) / scale: the slope of s by scale is
        # -tent(u) u / scale, and by offset -tent(u) / scale.
        d, d_u, grad_high, grad_low = sums.sum(1, np.float64)
        grad_scale = grad_high * (1 + offset) - grad_low * (1 - offset) - d_u
        grad_offset = scale * (grad_high + grad_low) - d
        return grad_scale.astype(sums.dtype), grad_offset.astype(sums.dtype)


class AdaptedWeight(Composed):
    """α_w v + β_w from `adapted_weight_parts`, as a single node of the graph.

    The composition is two dozen operations on small arrays, dominated by their overhead.
    """

    options: dict[str, Any]
    signs: Array  # (O, C, kh, kw)
    scale: Array  # (O, 1, 1, 1)
    offset: Array  # (O, 1, 1, 1)

    def forward(self, weight: Array, quantizer: Quantizer) -> Array:
        self.options = {"quantizer": quantizer}
        self.signs, self.scale, self.offset = adapted_weight_parts(weight, quantizer)
        return self.scale * self.signs + self.offset

    @staticmethod
    def composition(weight: V, quantizer: Callable[[V], V]) -> V:
        signs, scale, offset = adapted_weight_parts(weight, quantizer)
        return scale * signs + offset

    def gradients(self, grad: Array, weight: Array) -> Array:
        # The rules of the composition, in the same order.
        scale, centred = self.scale, weight - self.offset
        share = 1.0 / (weight.size // len(weight))  # weight of an element in a filter's mean
        normalised = centred / scale
        grad_normalised = self.options["quantizer"].gradient(grad * scale, normalised)
        grad_scale = _filter_sums(grad * self.signs) + _filter_sums(
            -grad_normalised / scale * normalised
        )
        grad_square = grad_scale * 0.5 / scale * share * centred
        grad_centred = grad_normalised / scale + grad_square + grad_square
        grad_offset = _filter_sums(grad) + _filter_sums(-grad_centred)
        return grad_centred + grad_offset * share


class OnesOfOneSample(Function):
    """Ones (1, C, H, W) in the shape of one sample of x, whatever the image size."""

    saves: tuple[str, ...] = ()

    def forward(self, x: Array) -> Array:
        return np.ones((1, *x.shape[1:]), x.dtype)

    def backward(self, grad: V, output: V, x: V) -> V:
        return broadcast_to(0.0 * grad, self.shapes[0])


class AdaptedConv2d(Composed):
    """conv2d(a, ŵ), computed as sums of signs; its gradients are those of the convolution."""

    options: dict[str, Any]
    weights: AdaptedWeight
    adapted: Array  # (O, C / groups, kh, kw)
    s: Array  # (N, C, H, W)

    @staticmethod
    def composition(
        x: V,
        weight: V,
        scale: V,
        offset: V,
        input_quantizer: Quantizer,
        weight_quantizer: Quantizer,
        signs: Quantizer | None,
        geometry: Geometry,
    ) -> V:
        v, *parts = adapted_weight_parts(weight, weight_quantizer)
        scale_of_filters, offset_of_filters = (reshape(f, (1, -1, 1, 1)) for f in parts)
        s, ones = input_quantizer((x - offset) / scale), Tensor(_ones(geometry, v.dtype))
        total, constant = (
            scale_of_filters * binary_conv2d(a, v, None, signs, **geometry.options)
            + offset_of_filters * binary_conv2d(a, ones, None, signs, **geometry.options)
            for a in (s, OnesOfOneSample.apply(s))
        )
        return scale * (total + offset * constant)

    def forward(
        self, x: Array, weight: Array, scale: Array, offset: Array, **options: Any
    ) -> Array:
        self.options, self.weights, geometry = options, AdaptedWeight(), options["geometry"]
        self.adapted = self.weights.forward(weight, options["weight_quantizer"])
        v, *parts = self.weights.signs, self.weights.scale, self.weights.offset
        scales, offsets = (f.reshape(-1, 1, 1) for f in parts)
        constant = offset * _sums_without_signs(v, scales, offsets, geometry)
        self.s = s = dispatch.two_values(x, (offset, scale, -1.0, 1.0))
        result = dispatch.adapted_conv2d(s, v, scales, offsets, constant, scale, geometry)
        if result is not None:
            return result
        # Σ s for each filter, and constants for each pixel: NumPy is slow at broadcasting rows of
        # few channels.
        total = conv2d(s, v, **geometry.options)
        total *= _for_each_pixel(scales, geometry)
        sign_sums = conv2d(s, np.ones_like(v), **geometry.options)
        sign_sums *= _for_each_pixel(offsets, geometry)
        total += sign_sums
        total += _for_each_pixel(constant, geometry)
        total *= scale
        return total

    def gradients(
        self, grad: Array, x: Array, weight: Array, scale: Array, offset: Array
    ) -> tuple[Array | None, ...]:
        geometry = self.options["geometry"]
        grad_weight, grad_input = None, (None, None, None)
        if self.needs[0] or self.needs[2] or self.needs[3]:
            grad_a = ConvInput.apply(grad, self.adapted, geometry=geometry)
            grad_input = AdaptedSet().gradients(grad_a, x, scale, offset)
        if self.needs[1]:
            a = np.add(self.s, offset, out=empty_like(self.s))
            a *= scale
            grad_adapted = ConvWeight.apply(a, grad, geometry=geometry)
            grad_weight = self.weights.gradients(grad_adapted, weight)
        grad_x, grad_scale, grad_offset = grad_input
        return grad_x, grad_weight, grad_scale, grad_offset


def _ones(geometry, dtype):
    """Filters of ones: one that sums all input channels, with groups one for each output."""
    count = geometry.weight[0] if geometry.groups > 1 else 1
    return np.ones((count, *geometry.weight[1:]), dtype)


def _for_each_pixel(values, geometry):
    """(O, 1, 1) or (O, OH, OW) -> (1, O, OH, OW), channels-last in memory."""
    image = empty_image((1, geometry.weight[0], *geometry.output), values.dtype)
    image[...] = values
    return image


def _sums_without_signs(v, scales, offsets, geometry):
    """α_w Σ v + β_w Σ 1 over the taps inside the image, equal for all samples: (O, OH, OW).

    (O, 1, 1) without padding, where all taps are inside.
    """
    channel_sums = v.sum(1)
    if geometry.padding == (0, 0):
        return scales * channel_sums.sum((1, 2), keepdims=True) + offsets * v.dtype.type(v[0].size)
    rows, columns, counts = _inside(geometry, v.dtype)
    (oh, kh), (_, kw) = rows.shape, columns.shape
    row_sums = rows @ channel_sums.transpose(1, 2, 0).reshape(kh, -1)  # (OH, kw * O)
    weight_sums = columns @ row_sums.reshape(oh, kw, -1)  # (OH, OW, O)
    return (scales.reshape(-1) * weight_sums + offsets.reshape(-1) * counts).transpose(2, 0, 1)


@functools.lru_cache(maxsize=256)  # a layer in training asks at each step
def _inside(geometry, dtype):
    """Masks of the taps inside the image, rows (OH, kh) and columns (OW, kw), and their counts.

    The counts, (OH, OW, 1), are Σ 1 over the taps inside and all channels.
    """
    masks = []
    for n, k, outputs, s, p, d in zip(
        geometry.image[2:], geometry.weight[2:], geometry.output, geometry.stride,
        geometry.padding, geometry.dilation, strict=True,
    ):  # fmt: skip
        pixels = np.arange(outputs)[:, None] * s - p + np.arange(k) * d
        masks.append(((pixels >= 0) & (pixels < n)).astype(dtype))
    rows, columns = masks
    return rows, columns, geometry.weight[1] * np.outer(rows.sum(1), columns.sum(1))[..., None]


def adapted_conv2d(
    x: V,
    weight: V,
    scale: V,
    offset: V,
    input_quantizer: Quantizer,
    weight_quantizer: Quantizer,
    signs: Quantizer | None = None,
    **options: Any,
) -> V:
    """Convolve α_a (s + β_a) with α_w v + β_w, computed as sums of signs (Tu et al. 2022).

    Parameters
    ----------
    x : (N, C, H, W)
    weight : (O, C / groups, kh, kw)
        Latent weights.
    scale, offset : (1,)
        α_a, which must be positive, and β_a.
    input_quantizer, weight_quantizer : Quantizer or callable
        Applied to the normalised input and to the normalised weight.
    signs : Quantizer, optional
        The sign, if the weight quantizer returns signs: their sums then run on bits.
    **options
        stride, padding, dilation and groups, as in `conv2d`.

    Returns
    -------
    (N, O, OH, OW)
    """
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    geometry = geometry_of("adapted_conv2d", np.shape(x), np.shape(weight), **options)
    has_kernels = signs is not None and input_quantizer.is_tent
    compute = AdaptedConv2d.apply if has_kernels and not is_tracing() else AdaptedConv2d.composition
    return compute(
        x, weight, scale, offset, input_quantizer=input_quantizer,
        weight_quantizer=weight_quantizer, signs=signs, geometry=geometry,
    )  # fmt: skip


def _filter_sums(x):
    """Sum each filter: (O, C, kh, kw) -> (O, 1, 1, 1)."""
    axes = tuple([i for i in range(1, x.ndim) if x.shape[i] > 1])
    return x.sum(axis=axes, keepdims=True) if axes else x


def adapted_weight_parts(weight: V, quantizer: Callable[[V], V]) -> tuple[V, V, V]:
    """Compute signs v, scale α_w and offset β_w of AdaBin's weights, filter by filter.

    β_w = mean W, α_w = sqrt(mean (W - β_w)²), v = sign((W - β_w) / α_w) (Tu et al. 2022).

    Parameters
    ----------
    weight : (O, C, kh, kw)
        Latent weights W.
    quantizer : callable
        The sign.

    Returns
    -------
    signs : (O, C, kh, kw)
    scale, offset : (O, 1, 1, 1)
    """
    offset = mean(weight, (1, 2, 3), keepdim=True)
    centred = weight - offset
    # The 1e-12 avoids a division by zero for a filter of equal weights.
    scale = sqrt(mean(centred * centred, (1, 2, 3), keepdim=True) + 1e-12)
    return quantizer(centred / scale), scale, offset


def adapted_weight(weight: V, quantizer: Callable[[V], V]) -> V:
    """Compute AdaBin's weights α_w v + β_w; see `adapted_weight_parts`.

    Parameters
    ----------
    weight : (O, C, kh, kw)
        Latent weights.
    quantizer : Quantizer or callable
        For a callable that is no Quantizer, such as the identity, the composition is evaluated.

    Returns
    -------
    (O, C, kh, kw)
    """
    if not hasattr(quantizer, "gradient"):
        return AdaptedWeight.composition(weight, quantizer)
    return AdaptedWeight.apply(weight, quantizer=quantizer)


def adapted_set(x: V, scale: V, offset: V, quantizer: Quantizer) -> V:
    """Compute AdaBin's activations scale (s + offset), s = sign((x - offset) / scale).

    Tu et al. 2022; this is the form of the authors' code, the paper has scale s + offset.

    Parameters
    ----------
    x : (N, C, ...)
    scale, offset : (1,)
        The scale must be positive.
    quantizer : Quantizer
        The sign, as in `rsign`.

    Returns
    -------
    (N, C, ...)
    """
    for name, value in (("scale", scale), ("offset", offset)):
        if np.shape(value) != (1,):
            raise ValueError(f"adapted_set: {name} must have shape (1,), got {np.shape(value)}")
    if not quantizer.is_tent:
        return AdaptedSet.composition(x, scale, offset, quantizer)
    return AdaptedSet.apply(x, scale, offset, quantizer=quantizer)
