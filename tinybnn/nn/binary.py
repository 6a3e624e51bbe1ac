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
from tinybnn.autograd import Tensor, default_generator
from tinybnn.nn.layers import Conv2d, Linear, channels_last, check_sizes
from tinybnn.nn.module import Cost, LatentParameter, Module, ModuleList, Parameter, Sequential


class _Binary:
    """What the binary twins share: quantizers, latent weight, scale of the accumulator."""

    def _initial_weight(self, shape, rng):
        return LatentParameter(_glorot_uniform(shape, rng))

    def _set_binary(self, input_quantizer, weight_quantizer, scale, clip_value):
        self.input_quantizer = quantizers.get(input_quantizer)
        self.weight_quantizer = quantizers.get(weight_quantizer)
        if scale not in (None, "mean", "learned"):
            raise ValueError(
                f"{type(self).__name__}: scale must be None, 'mean' or 'learned', got {scale!r}"
            )
        self.scale_mode, self.weight.clip_value = scale, clip_value
        is_learned = scale == "learned"
        self.scale = Parameter(np.ones(len(self.weight), np.float32)) if is_learned else None

    def binary_weight(self):
        """The weights that the layer computes with, an array of the weight's shape.

        ±1 for a sign (also where it has a scale: that multiplies the sums, not the weights), -1, 0
        and 1 for a ternary quantizer.
        """
        if self.weight_quantizer is None:
            raise ValueError(f"{type(self).__name__} without weight_quantizer has real weights")
        return self.weight_quantizer.levels().forward(self.weight.data)

    def _sums_are_integers(self):
        integers = self.weight_quantizer and self.weight_quantizer.values is not None
        return bool(integers and self.input_quantizer and self.input_quantizer.gives_signs)

    def _cost(self, output_shape, products):
        floats = sum(p.numel() for p in self.parameters()) - self.weight.numel()
        bits_each = self.weight_quantizer.bits if self.weight_quantizer else 32
        bits = 32 * floats + bits_each * self.weight.numel()
        kind = "bops" if self._sums_are_integers() else "flops"
        return Cost(tuple(output_shape), weight_bits=bits, **{kind: products})

    def _scaled(self, accumulator):
        """Scale and bias act on the accumulator, never on the weights: its sums stay exact."""
        scale = self.weight_quantizer and self.weight_quantizer.scale(self.weight.data)
        if scale is not None:
            accumulator = self._times(accumulator, Tensor(scale))
        if self.scale_mode == "mean":
            scale = quantizers.magnitude(self.weight.data)
            accumulator = self._times(accumulator, Tensor(scale))
        elif self.scale_mode == "learned":
            accumulator = self._times(accumulator, self.scale)
        if self.bias is not None:
            accumulator = accumulator + self._of_filters(self.bias)
        return accumulator

    def _times(self, accumulator, scale):
        # A scale of its own for each channel has a kernel.
        channels = accumulator.shape[1:2] if accumulator.ndim == self.weight.ndim else None
        if scale.shape == channels:
            return F.scale_channels(accumulator, scale)
        return accumulator * self._of_filters(scale)

    def _of_filters(self, values):
        """(O,) as it meets the accumulator: (O,), or (O, 1, 1) for an image."""
        return values.reshape(-1, *(1,) * (self.weight.ndim - 2))

    def extra_repr(self):
        text = super().extra_repr() + _quantizers_repr(self)
        text += f", clip_value={self.weight.clip_value}"
        return text + (f", scale={self.scale_mode!r}" if self.scale_mode else "")


def _quantizers_repr(layer):
    return (
        f", input_quantizer={layer.input_quantizer!r}, weight_quantizer={layer.weight_quantizer!r}"
    )


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
        super().__init__(in_features, out_features, bias, rng=rng)
        self._set_binary(input_quantizer, weight_quantizer, scale, clip_value)

    def forward(self, x):
        product = F.binary_linear(
            x, self.weight, self.input_quantizer, self.weight_quantizer,
            fixed_order=not self.training,
        )  # fmt: skip
        return self._scaled(product)


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
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, rng=rng
        )
        if padding_mode not in ("zeros", "ones"):
            raise ValueError(
                f"BinaryConv2d: padding_mode must be 'zeros' or 'ones', got {padding_mode!r}"
            )
        self.padding_mode = padding_mode
        self._set_binary(input_quantizer, weight_quantizer, scale, clip_value)

    def forward(self, x):
        product = F.binary_conv2d(
            x, self.weight, self.input_quantizer, self.weight_quantizer, **self._options,
            padding_mode=self.padding_mode, fixed_order=not self.training,
        )  # fmt: skip
        return self._scaled(product)

    def extra_repr(self):
        text = super().extra_repr()
        return text + (", padding_mode='ones'" if self.padding_mode == "ones" else "")


class BinaryDepthwiseConv2d(BinaryConv2d):
    """BinaryConv2d in which every channel has a filter of its own: groups = channels.

    The packed layer counts bits of the same channel over the window, 64 channels to a word
    (`kernels.depthwise`).

    Parameters
    ----------
    channels : int
    kernel_size, stride, padding, dilation, bias, padding_mode
        As in BinaryConv2d.
    input_quantizer, weight_quantizer, scale, clip_value, rng
        As in BinaryLinear.

    Attributes
    ----------
    weight : (channels, 1, kh, kw) float32, latent
    bias, scale : (channels,) float32 or None
    """

    def __init__(
        self,
        channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        bias=False,
        padding_mode="zeros",
        *,
        input_quantizer="ste_sign",
        weight_quantizer="ste_sign",
        scale=None,
        clip_value=1.0,
        rng=None,
    ):
        check_sizes("BinaryDepthwiseConv2d", channels=channels)
        super().__init__(
            channels, channels, kernel_size, stride, padding, dilation, channels, bias,
            padding_mode, input_quantizer=input_quantizer, weight_quantizer=weight_quantizer,
            scale=scale, clip_value=clip_value, rng=rng,
        )  # fmt: skip


class Quantize(Module):
    """A quantizer as a layer, for models that binarize outside of a binary layer.

    Parameters
    ----------
    quantizer : Quantizer or name
    """

    def __init__(self, quantizer="ste_sign"):
        self.quantizer = _quantizer("Quantize", quantizer)

    def forward(self, x):
        return self.quantizer(x)

    def extra_repr(self):
        return repr(self.quantizer)


class RSign(Module):
    """sign(x - α), with a learned threshold α for each channel.

    ReActNet (Liu et al. 2020, eq. 1); its code adds the learned value instead.

    Parameters
    ----------
    num_channels : int
    quantizer : Quantizer or name

    Attributes
    ----------
    threshold : (C,) float32
    """

    def __init__(self, num_channels, quantizer="approx_sign"):
        check_sizes("RSign", num_channels=num_channels)
        self.threshold = Parameter(np.zeros(num_channels, np.float32))
        self.quantizer = _quantizer("RSign", quantizer)

    def forward(self, x):
        return F.rsign(x, self.threshold, self.quantizer)

    def extra_repr(self):
        return f"{len(self.threshold)}, quantizer={self.quantizer!r}"


class RPReLU(Module):
    """PReLU(x - γ) + ζ, with a learned shift before, slope, and shift after for each channel.

    ReActNet (Liu et al. 2020, eq. 2).

    Parameters
    ----------
    num_channels : int
    init : float
        Initial slope.

    Attributes
    ----------
    shift_in, weight, shift_out : (C,) float32
        γ, the slope, ζ.
    """

    def __init__(self, num_channels, init=0.25):
        check_sizes("RPReLU", num_channels=num_channels)
        self.shift_in = Parameter(np.zeros(num_channels, np.float32))
        self.weight = Parameter(np.full(num_channels, init, np.float32))
        self.shift_out = Parameter(np.zeros(num_channels, np.float32))

    def forward(self, x):
        return F.rprelu(x, self.shift_in, self.weight, self.shift_out)

    def extra_repr(self):
        return f"{len(self.weight)}"


class Maxout(Module):
    """γ⁺ relu(x) - γ⁻ relu(-x), with learned γ⁺ and γ⁻ for each channel.

    The activation of AdaBin's code (Tu et al. 2022).

    Parameters
    ----------
    num_channels : int
    positive, negative : float
        Initial γ⁺ and γ⁻.

    Attributes
    ----------
    positive, negative : (C,) float32
    """

    def __init__(self, num_channels, positive=1.0, negative=0.25):
        check_sizes("Maxout", num_channels=num_channels)
        self.positive = Parameter(np.full(num_channels, positive, np.float32))
        self.negative = Parameter(np.full(num_channels, negative, np.float32))

    def forward(self, x):
        return F.maxout(x, self.positive, self.negative)

    def extra_repr(self):
        return f"{len(self.positive)}"


def _quantizer(layer, quantizer):
    """A quantizer by name or itself, for a layer that has nothing to do without one."""
    quantizer = quantizers.get(quantizer)
    if quantizer is None:
        raise ValueError(f"{layer}: expects a quantizer, got None")
    return quantizer


class AdaBinConv2d(Conv2d):
    """Convolution whose two weight values and two activation values are adapted to the data.

    Weights, for each output filter: β_w = mean W, α_w = sqrt(mean (W - β_w)²),
    ŵ = α_w v + β_w with v = sign((W - β_w) / α_w). Activations: a = α_a (s + β_a) with
    s = sign((x - β_a) / α_a), and α_a, β_a learned. (AdaBin, Tu et al. 2022; this is the form of
    its code, the paper writes α_a s + β_a.)

    The sum over a window is expanded into sums of signs, which are integers,

        Σ a ŵ = α_a (α_w Σ s v + β_w Σ s + β_a (α_w Σ v + β_w Σ 1)),

    so that a packed model computes the same. Sums run over the taps inside the image.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As in Conv2d.
    input_quantizer : Quantizer or name
        Of the normalised input.
    weight_quantizer : Quantizer or name
        Of the normalised weight.
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    weight : (out_channels, in_channels / groups, kh, kw) float32, latent, never clipped
    bias : (out_channels,) float32 or None
    input_scale, input_offset : (1,) float32
        α_a, which acts as 0.001 where it is smaller, and β_a.
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
        *,
        input_quantizer="approx_sign",
        weight_quantizer="ede_sign",
        rng=None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, rng=rng
        )
        self.weight = LatentParameter(self.weight.data, clip_value=None)
        self.input_scale = Parameter(np.ones(1, np.float32))
        self.input_offset = Parameter(np.zeros(1, np.float32))
        self.input_quantizer = _quantizer("AdaBinConv2d", input_quantizer)
        self.weight_quantizer = _quantizer("AdaBinConv2d", weight_quantizer)

    def forward(self, x):
        is_sign = getattr(self.weight_quantizer, "is_sign", False)  # or any function of x
        total = F.adapted_conv2d(
            x, self.weight, F.maximum(self.input_scale, 1e-3), self.input_offset,
            self.input_quantizer, self.weight_quantizer, quantizers.ste_sign if is_sign else None,
            **self._options,
        )  # fmt: skip
        return total if self.bias is None else total + self.bias.reshape(1, -1, 1, 1)

    def _cost(self, output_shape, products):
        # Σ s is one more filter (or, with groups, one for each); the other sums are constants.
        more = 1 if self.groups == 1 else self.out_channels
        bops = products + products // self.out_channels * more
        floats = 2 * self.out_channels + sum(p.numel() for p in self.parameters())
        floats -= self.weight.numel()
        return Cost(tuple(output_shape), 32 * floats + self.weight.numel(), bops=bops)

    def extra_repr(self):
        return super().extra_repr() + _quantizers_repr(self)

    def binary_weight(self):
        """The signs v of the weights, an array of ±1."""
        return F.adapted_weight_parts(self.weight.data, self.weight_quantizer)[0]


class _Branches(Module):
    """Convolutions of the same input, added in order."""

    def forward(self, x):
        total, *others = (branch(x) for branch in self.branches)
        for other in others:
            total = total + other
        return total

    def binary_weight(self):
        """The ±1 weights of the branches, one after the other: (N, O, C / groups, kh, kw)."""
        return np.stack([conv.binary_weight() for conv in self.convolutions()])

    def extra_repr(self):
        return f"branches={len(self.branches)}"


def _boundaries(count):
    """So many boundaries that cut [-1, 1] into equal parts; 0 for one."""
    return (2.0 * np.arange(1, count + 1) / (count + 1) - 1.0).astype(np.float32)


class DualBinaryConv2d(_Branches):
    """The 1.58-bit convolution: binary convolutions side by side, two by default, added.

    Branch i has a rounding boundary α_i of its own for each input channel, an output value β_i of
    its own for each output channel, and signs W_i of its own:

        y = Σ_i β_i conv(sign(x - α_i), sign(W_i)).

    One tap of two branches with sign(W_1) = sign(W_2) = +1 and α_1 <= α_2 is BD-Net's Eq. 11,

        -β_1 - β_2  where x < α_1,    β_1 - β_2  where α_1 <= x < α_2,    β_1 + β_2  where α_2 <= x.

    N branches give N + 1 levels, so log2(N + 1) bits: 1 for one branch, which is the plain binary
    convolution, 1.58 for two, 2 for three. The signs of the weights decide the order of the levels:
    (+, +) rises and (-, -) falls from interval to interval, (+, -) is highest and (-, +) lowest
    in the middle.

    That the branches have weights of their own is how we read "two binary convs in parallel". The
    initial values are ours: boundaries that cut [-1, 1] into equal parts, and β_i so that a sum of
    N K independent signs, K to a window, begins with a variance of 1, like the input behind a batch
    norm.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        As in BinaryConv2d; groups = in_channels = out_channels is the depth-wise one.
    branches : int
        N.
    input_quantizer : Quantizer or name
        Of x - α_i.
    weight_quantizer, clip_value, rng
        As in BinaryLinear.

    Attributes
    ----------
    branches : ModuleList of Sequential
        An RSign, which holds α_i, and a BinaryConv2d, which holds W_i and, as its scale, β_i.
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
        padding_mode="zeros",
        *,
        branches=2,
        input_quantizer="approx_sign",
        weight_quantizer="ste_sign",
        clip_value=1.0,
        rng=None,
    ):
        check_sizes("DualBinaryConv2d", branches=branches)
        self.branches = ModuleList()
        for boundary in _boundaries(branches):
            sign = RSign(in_channels, input_quantizer)
            conv = BinaryConv2d(
                in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False,
                padding_mode, input_quantizer=None, weight_quantizer=weight_quantizer,
                scale="learned", clip_value=clip_value, rng=rng,
            )  # fmt: skip
            sign.threshold.data[...] = boundary
            conv.scale.data[...] = (branches * np.prod(conv.weight_shape[1:])) ** -0.5
            self.branches.append(Sequential(sign, conv))

    def convolutions(self):
        """The binary convolutions of the branches, in order."""
        return [branch[1] for branch in self.branches]


class DualAdaBinConv2d(_Branches):
    """AdaBin convolutions side by side, two by default, added: the 1.58-bit convolution on AdaBin.

    Each branch adapts its boundary (AdaBin's β_a, one for all channels) and its output values (α_a,
    α_w, β_w) by itself; otherwise as `DualBinaryConv2d`. BD-Net names the combination, its form is
    our reading.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        As in Conv2d.
    branches : int
        N.
    input_quantizer, weight_quantizer, rng
        As in AdaBinConv2d.

    Attributes
    ----------
    branches : ModuleList of AdaBinConv2d
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
        *,
        branches=2,
        input_quantizer="approx_sign",
        weight_quantizer="ede_sign",
        rng=None,
    ):
        check_sizes("DualAdaBinConv2d", branches=branches)
        self.branches = ModuleList()
        for boundary in _boundaries(branches):
            conv = AdaBinConv2d(
                in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
                input_quantizer=input_quantizer, weight_quantizer=weight_quantizer, rng=rng,
            )  # fmt: skip
            conv.input_offset.data[...] = boundary
            self.branches.append(conv)

    def convolutions(self):
        """The AdaBin convolutions of the branches, in order."""
        return list(self.branches)
