"""Binary twins of the float layers: signs in, signs as weights, integers out.

A binary layer learns a *latent* float weight and computes with its sign. Its parameters have the
names, shapes and order of the float twin's. The intended differences are the quantizers, the
scale, `clip_value`, `padding_mode`, and that there is no bias by default, since a batch norm
follows.
"""

from __future__ import annotations

import numpy as np

from tinybnn import functional as F
from tinybnn import quantizers
from tinybnn.nn.layers import Conv2d, Linear, _initial_bias, channels_last, check_sizes
from tinybnn.nn.module import LatentParameter, Module, Parameter
from tinybnn.tensor import Tensor, default_generator


class _Binary:
    """What the binary twins share: quantizers, latent weight, scale of the accumulator."""

    def _set_binary(self, shape, bias, input_quantizer, weight_quantizer, scale, clip_value, rng):
        self.input_quantizer = quantizers.get(input_quantizer)
        self.weight_quantizer = quantizers.get(weight_quantizer)
        if scale not in (None, "mean", "learned"):
            raise ValueError(
                f"{type(self).__name__}: scale must be None, 'mean' or 'learned', got {scale!r}"
            )
        self.scale_mode = scale
        self.weight = LatentParameter(_glorot_uniform(shape, rng), clip_value=clip_value)
        self.bias = Parameter(_initial_bias(shape, rng)) if bias else None
        self.scale = Parameter(np.ones(shape[0], np.float32)) if scale == "learned" else None

    def binary_weight(self):
        """The weights that the layer computes with: an array of ±1 of the weight's shape."""
        if self.weight_quantizer is None:
            raise ValueError(f"{type(self).__name__} without weight_quantizer has real weights")
        return self.weight_quantizer.forward(self.weight.data)

    def _quantized(self, x):
        """Input and weight as the layer sees them, and whether the sums are sums of ±1."""
        x = self.input_quantizer(x) if self.input_quantizer else x
        weight = self.weight_quantizer(self.weight) if self.weight_quantizer else self.weight
        return x, weight, bool(self.input_quantizer and self.weight_quantizer)

    def _scaled(self, accumulator):
        """Scale and bias act on the accumulator, never on the weights: its sums stay exact."""
        per_channel = (-1,) + (1,) * (self.weight.ndim - 2)  # (O,) or (O, 1, 1)
        if self.scale_mode == "mean":
            magnitude = np.abs(self.weight.data).reshape(len(self.weight.data), -1).mean(1)
            accumulator = accumulator * Tensor(magnitude.reshape(per_channel))
        elif self.scale_mode == "learned":
            accumulator = accumulator * self.scale.reshape(per_channel)
        if self.bias is not None:
            accumulator = accumulator + self.bias.reshape(per_channel)
        return accumulator

    def extra_repr(self):
        text = super().extra_repr()
        return text + (f", scale={self.scale_mode!r}" if self.scale_mode else "")


def _glorot_uniform(shape, rng):
    """Uniform in ±sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""
    rng = default_generator() if rng is None else rng
    taps = int(np.prod(shape[2:]))
    bound = np.sqrt(6.0 / ((shape[0] + shape[1]) * taps))
    return channels_last(rng.uniform(-bound, bound, shape).astype(np.float32))


class BinaryLinear(_Binary, Linear):
    """y = sign(x) @ sign(weight).T, times a scale, plus a bias.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    input_quantizer, weight_quantizer : Quantizer, name or None
        None leaves the input (say, of a first layer) or the weight real.
    scale : None, 'mean' or 'learned'
        Factor of each output: none; the mean of its |latent weights|, held constant in the
        gradient (XNOR-Net, Rastegari et al. 2016, eq. 6); or a parameter of its own.
    clip_value : float or None
        Latent weights are clipped to ± this value after each optimizer step.
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    weight : (out_features, in_features) float32, latent
    bias, scale : (out_features,) float32 or None
    """

    def __init__(
        self,
        in_features,
        out_features,
        bias=False,
        *,
        input_quantizer="ste_sign",
        weight_quantizer="ste_sign",
        scale=None,
        clip_value=1.0,
        rng=None,
    ):
        check_sizes("BinaryLinear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self._set_binary(
            (out_features, in_features), bias, input_quantizer, weight_quantizer, scale,
            clip_value, rng,
        )  # fmt: skip

    def forward(self, x):
        x, weight, is_exact = self._quantized(x)
        return self._scaled(F.linear(x, weight, fixed_order=not (self.training or is_exact)))


class BinaryConv2d(_Binary, Conv2d):
    """Convolution of sign(x) with sign(weight), times a scale, plus a bias.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As in Conv2d.
    padding_mode : 'zeros' or 'ones'
        What stands outside of the image after the input quantizer: 0 (which is not a sign; the
        packed layer corrects its counts at the border) or +1.
    input_quantizer, weight_quantizer, scale, clip_value, rng
        As in BinaryLinear.

    Attributes
    ----------
    weight : (out_channels, in_channels / groups, kh, kw) float32, latent
    bias, scale : (out_channels,) float32 or None
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=False,
        padding_mode="zeros",
        *,
        input_quantizer="ste_sign",
        weight_quantizer="ste_sign",
        scale=None,
        clip_value=1.0,
        rng=None,
    ):
        self._set_geometry(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        )
        if padding_mode not in ("zeros", "ones"):
            raise ValueError(
                f"BinaryConv2d: padding_mode must be 'zeros' or 'ones', got {padding_mode!r}"
            )
        self.padding_mode = padding_mode
        self._set_binary(
            self.weight_shape, bias, input_quantizer, weight_quantizer, scale, clip_value, rng
        )

    def forward(self, x):
        x, weight, is_exact = self._quantized(x)
        padding = self.padding
        if self.padding_mode == "ones" and padding != (0, 0):
            (ph, pw), padding = padding, (0, 0)
            x = F.pad(x, (pw, pw, ph, ph), 1.0)
        return self._scaled(
            F.conv2d(
                x, weight, None, self.stride, padding, self.dilation, self.groups,
                fixed_order=not (self.training or is_exact),
            )
        )  # fmt: skip

    def extra_repr(self):
        text = super().extra_repr()
        return text + (", padding_mode='ones'" if self.padding_mode == "ones" else "")


class Quantize(Module):
    """A quantizer as a layer, for models that binarize outside of a binary layer.

    Parameters
    ----------
    quantizer : Quantizer or name
    """

    def __init__(self, quantizer="ste_sign"):
        self.quantizer = quantizers.get(quantizer)
        if self.quantizer is None:
            raise ValueError("Quantize: expects a quantizer, got None")

    def forward(self, x):
        return self.quantizer(x)

    def extra_repr(self):
        return repr(self.quantizer)
