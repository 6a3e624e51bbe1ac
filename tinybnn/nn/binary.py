"""Binary counterparts of the float layers: inputs and weights are signs, and their sums integers.

A binary layer learns a *latent* float weight and computes with its sign. Its parameters have the
names, shapes and order of those of the float layer. Its additional arguments are the quantizers,
`scale`, `clip_value` and `padding_mode`. By default it has no bias, since usually a batch norm
follows, which has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn import functional as F
from tinybnn import quantizers
from tinybnn.autograd import Tensor, default_generator
from tinybnn.nn.layers import Conv2d, Linear, channels_last, check_sizes
from tinybnn.nn.module import Cost, LatentParameter, Module, ModuleList, Parameter, Sequential

if TYPE_CHECKING:
    from tinybnn.quantizers import Quantizer
    from tinybnn.typing import FloatArray, Pair


class _Binary:
    """Shared by the binary layers: quantizers, latent weight, scale of the accumulator."""

    input_quantizer: Quantizer | None
    weight_quantizer: Quantizer | None
    scale_mode: str | None
    weight: LatentParameter
    bias: Parameter | None
    scale: Parameter | None

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

    def binary_weight(self) -> FloatArray:
        """Return the weights that the layer computes with, of the weight's shape and dtype.

        They are ±1 for a sign, and -1, 0 and 1 for a ternary quantizer. A scale is not included:
        it multiplies the sums.
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
        unit = "bops" if self._sums_are_integers() else "flops"
        return Cost(tuple(output_shape), weight_bits=bits, **{unit: products})

    def _scaled(self, accumulator):
        """Apply scale and bias to the accumulator, not to the weights, so that sums stay exact."""
        scale = self.weight_quantizer and self.weight_quantizer.scale(self.weight.data)
        if scale is not None:
            accumulator = self._times(accumulator, Tensor(scale))
        if self.scale_mode == "mean":
            scale = quantizers.magnitude(self.weight.data)
            accumulator = self._times(accumulator, Tensor(scale))
        elif self.scale_mode == "learned":
            accumulator = self._times(accumulator, self.scale)
        if self.bias is not None:
            accumulator = accumulator + self._broadcastable(self.bias)
        return accumulator

    def _times(self, accumulator, scale):
        # A kernel computes the case of one scale per channel.
        channels = accumulator.shape[1:2] if accumulator.ndim == self.weight.ndim else None
        if scale.shape == channels:
            return F.scale_channels(accumulator, scale)
        return accumulator * self._broadcastable(scale)

    def _broadcastable(self, values):
        """Reshape (O,) to broadcast with the accumulator: (O,), or (O, 1, 1) for images."""
        return values.reshape(-1, *(1,) * (self.weight.ndim - 2))

    def extra_repr(self) -> str:
        text = super().extra_repr() + _quantizers_repr(self)
        text += f", clip_value={self.weight.clip_value}"
        return text + (f", scale={self.scale_mode!r}" if self.scale_mode else "")


def _quantizers_repr(layer):
    return (
        f", input_quantizer={layer.input_quantizer!r}, weight_quantizer={layer.weight_quantizer!r}"
    )


def _glorot_uniform(shape, rng):
    """Draw uniform numbers in ±sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""
    rng = default_generator() if rng is None else rng
    taps = int(np.prod(shape[2:]))
    bound = np.sqrt(6.0 / ((shape[0] + shape[1]) * taps))
    return channels_last(rng.uniform(-bound, bound, shape).astype(np.float32))


class BinaryLinear(_Binary, Linear):
    """y = sign(x) @ sign(weight).T, times a scale, plus a bias: (N, in) to (N, out_features).

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    input_quantizer, weight_quantizer : Quantizer, name or None
        None leaves the input (for example that of a first layer) or the weight as real numbers.
    scale : None, 'mean' or 'learned'
        Factor of each output channel: none; the mean of |latent weight| over its filter, treated as
        constant in the gradient (XNOR-Net, Rastegari et al. 2016, eq. 6); or a learned parameter.
    clip_value : float or None
        Latent weights are clipped to ± this value after each optimizer step.
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    weight : (out_features, in_features) float32, latent
    bias, scale : (out_features,) float32 or None
    """

    weight: LatentParameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        input_quantizer: Quantizer | str | None = "ste_sign",
        weight_quantizer: Quantizer | str | None = "ste_sign",
        scale: str | None = None,
        clip_value: float | None = 1.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, rng=rng)
        self._set_binary(input_quantizer, weight_quantizer, scale, clip_value)

    def forward(self, x: Tensor) -> Tensor:
        product = F.binary_linear(
            x, self.weight, self.input_quantizer, self.weight_quantizer,
            fixed_order=not self.training,
        )  # fmt: skip
        return self._scaled(product)


class BinaryConv2d(_Binary, Conv2d):
    """Convolution of sign(x) with sign(weight), times a scale, plus a bias; x is (N, C, H, W).

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As in Conv2d.
    padding_mode : 'zeros' or 'ones'
        Value of padding, added after the input quantizer: 0, which is not a sign, so that the
        packed layer must correct its counts at the border; or +1, which is one.
    input_quantizer, weight_quantizer, scale, clip_value, rng
        As in BinaryLinear.

    Attributes
    ----------
    weight : (out_channels, in_channels / groups, kh, kw) float32, latent
    bias, scale : (out_channels,) float32 or None
    """

    weight: LatentParameter
    padding_mode: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        *,
        input_quantizer: Quantizer | str | None = "ste_sign",
        weight_quantizer: Quantizer | str | None = "ste_sign",
        scale: str | None = None,
        clip_value: float | None = 1.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, rng=rng
        )
        if padding_mode not in ("zeros", "ones"):
            raise ValueError(
                f"BinaryConv2d: padding_mode must be 'zeros' or 'ones', got {padding_mode!r}"
            )
        self.padding_mode = padding_mode
        self._set_binary(input_quantizer, weight_quantizer, scale, clip_value)

    def forward(self, x: Tensor) -> Tensor:
        product = F.binary_conv2d(
            x, self.weight, self.input_quantizer, self.weight_quantizer, **self._options,
            padding_mode=self.padding_mode, fixed_order=not self.training,
        )  # fmt: skip
        return self._scaled(product)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text + (", padding_mode='ones'" if self.padding_mode == "ones" else "")


class BinaryDepthwiseConv2d(BinaryConv2d):
    """BinaryConv2d with one filter per channel: groups = channels.

    The packed layer counts the bits of each channel over the window, with 64 channels to a word
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
        channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        *,
        input_quantizer: Quantizer | str | None = "ste_sign",
        weight_quantizer: Quantizer | str | None = "ste_sign",
        scale: str | None = None,
        clip_value: float | None = 1.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_sizes("BinaryDepthwiseConv2d", channels=channels)
        super().__init__(
            channels, channels, kernel_size, stride, padding, dilation, channels, bias,
            padding_mode, input_quantizer=input_quantizer, weight_quantizer=weight_quantizer,
            scale=scale, clip_value=clip_value, rng=rng,
        )  # fmt: skip


class Quantize(Module):
    """A quantizer as a layer, for models that binarize outside of binary layers.

    Parameters
    ----------
    quantizer : Quantizer or name
    """

    quantizer: Quantizer

    def __init__(self, quantizer: Quantizer | str = "ste_sign") -> None:
        self.quantizer = _quantizer("Quantize", quantizer)

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(x)

    def extra_repr(self) -> str:
        return repr(self.quantizer)


class RSign(Module):
    """sign(x - α), with a learned threshold α for each channel of (N, C) or (N, C, H, W).

    This is eq. 1 of ReActNet (Liu et al. 2020); the authors' code learns -α and adds it.

    Parameters
    ----------
    num_channels : int
        C.
    quantizer : Quantizer or name
        Applied to x - α.

    Attributes
    ----------
    threshold : (C,) float32
        α, initially 0.
    """

    threshold: Parameter
    quantizer: Quantizer

    def __init__(self, num_channels: int, quantizer: Quantizer | str = "approx_sign") -> None:
        check_sizes("RSign", num_channels=num_channels)
        self.threshold = Parameter(np.zeros(num_channels, np.float32))
        self.quantizer = _quantizer("RSign", quantizer)

    def forward(self, x: Tensor) -> Tensor:
        return F.rsign(x, self.threshold, self.quantizer)

    def extra_repr(self) -> str:
        return f"{len(self.threshold)}, quantizer={self.quantizer!r}"


class RPReLU(Module):
    """PReLU(x - γ) + ζ, with learned shifts γ and ζ and a learned slope for each channel.

    ReActNet (Liu et al. 2020, eq. 2); x is (N, C) or (N, C, H, W).

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

    shift_in: Parameter
    weight: Parameter
    shift_out: Parameter

    def __init__(self, num_channels: int, init: float = 0.25) -> None:
        check_sizes("RPReLU", num_channels=num_channels)
        self.shift_in = Parameter(np.zeros(num_channels, np.float32))
        self.weight = Parameter(np.full(num_channels, init, np.float32))
        self.shift_out = Parameter(np.zeros(num_channels, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.rprelu(x, self.shift_in, self.weight, self.shift_out)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}"


class Maxout(Module):
    """γ⁺ relu(x) - γ⁻ relu(-x), with learned γ⁺ and γ⁻ for each channel.

    The activation of AdaBin's code (Tu et al. 2022); x is (N, C) or (N, C, H, W).

    Parameters
    ----------
    num_channels : int
    positive, negative : float
        Initial γ⁺ and γ⁻.

    Attributes
    ----------
    positive, negative : (C,) float32
    """

    positive: Parameter
    negative: Parameter

    def __init__(self, num_channels: int, positive: float = 1.0, negative: float = 0.25) -> None:
        check_sizes("Maxout", num_channels=num_channels)
        self.positive = Parameter(np.full(num_channels, positive, np.float32))
        self.negative = Parameter(np.full(num_channels, negative, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.maxout(x, self.positive, self.negative)

    def extra_repr(self) -> str:
        return f"{len(self.positive)}"


def _quantizer(layer, quantizer):
    """Look up a quantizer by name, for a layer that needs one."""
    quantizer = quantizers.get(quantizer)
    if quantizer is None:
        raise ValueError(f"{layer}: expects a quantizer, got None")
    return quantizer


class AdaBinConv2d(Conv2d):
    """Convolution whose two weight values and two activation values adapt to the data.

    The input is (N, C, H, W). Weights, for each output filter: β_w = mean W,
    α_w = sqrt(mean (W - β_w)²), ŵ = α_w v + β_w with v = sign((W - β_w) / α_w). Activations:
    a = α_a (s + β_a) with s = sign((x - β_a) / α_a), where α_a and β_a are learned. (AdaBin, Tu et
    al. 2022; this formula is that of the authors' code, while the paper has a = α_a s + β_a.)

    The sum over a window is expanded into sums of signs, which are integers,

        Σ a ŵ = α_a (α_w Σ s v + β_w Σ s + β_a (α_w Σ v + β_w Σ 1)),

    so that a packed model can compute it exactly. Each sum runs over the taps inside the image.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As in Conv2d.
    input_quantizer, weight_quantizer : Quantizer or name
        Applied to (x - β_a) / α_a and (W - β_w) / α_w.
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    weight : (out_channels, in_channels / groups, kh, kw) float32, latent, never clipped
    bias : (out_channels,) float32 or None
    input_scale, input_offset : (1,) float32
        α_a, with 0.001 as its lower limit in the forward pass, and β_a.
    """

    weight: LatentParameter
    input_scale: Parameter
    input_offset: Parameter
    input_quantizer: Quantizer
    weight_quantizer: Quantizer

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        input_quantizer: Quantizer | str = "approx_sign",
        weight_quantizer: Quantizer | str = "ede_sign",
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, rng=rng
        )
        self.weight = LatentParameter(self.weight.data, clip_value=None)
        self.input_scale = Parameter(np.ones(1, np.float32))
        self.input_offset = Parameter(np.zeros(1, np.float32))
        self.input_quantizer = _quantizer("AdaBinConv2d", input_quantizer)
        self.weight_quantizer = _quantizer("AdaBinConv2d", weight_quantizer)

    def forward(self, x: Tensor) -> Tensor:
        is_sign = getattr(self.weight_quantizer, "is_sign", False)  # or any function of x
        total = F.adapted_conv2d(
            x, self.weight, F.maximum(self.input_scale, 1e-3), self.input_offset,
            self.input_quantizer, self.weight_quantizer, quantizers.ste_sign if is_sign else None,
            **self._options,
        )  # fmt: skip
        return total if self.bias is None else total + self.bias.reshape(1, -1, 1, 1)

    def _cost(self, output_shape, products):
        # Σ s is one more filter (with groups: one more for each); the other sums are constants.
        more = 1 if self.groups == 1 else self.out_channels
        bops = products + products // self.out_channels * more
        floats = 2 * self.out_channels + sum(p.numel() for p in self.parameters())
        floats -= self.weight.numel()
        return Cost(tuple(output_shape), 32 * floats + self.weight.numel(), bops=bops)

    def extra_repr(self) -> str:
        return super().extra_repr() + _quantizers_repr(self)

    def binary_weight(self) -> FloatArray:
        """Return the signs v of the weights: ±1, an array of the weight's shape and dtype."""
        return F.adapted_weight_parts(self.weight.data, self.weight_quantizer)[0]


class _Branches(Module):
    """The sum of several convolutions of the same input, added in order."""

    branches: ModuleList

    def forward(self, x: Tensor) -> Tensor:
        total, *others = (branch(x) for branch in self.branches)
        for other in others:
            total = total + other
        return total

    def binary_weight(self) -> FloatArray:
        """Return the ±1 weights of the branches, stacked: (N, O, C / groups, kh, kw) float32."""
        return np.stack([conv.binary_weight() for conv in self.convolutions()])

    def extra_repr(self) -> str:
        return f"branches={len(self.branches)}"


def _boundaries(count):
    """`count` boundaries that cut [-1, 1] into equal parts; 0 for a single one."""
    return (2.0 * np.arange(1, count + 1) / (count + 1) - 1.0).astype(np.float32)


class DualBinaryConv2d(_Branches):
    """The 1.58-bit convolution: a sum of parallel binary convolutions, two by default.

    Branch i has its own rounding boundary α_i for each input channel, output value β_i for each
    output channel, and signs W_i:

        y = Σ_i β_i conv(sign(x - α_i), sign(W_i)).

    One tap of two branches with sign(W_1) = sign(W_2) = +1 and α_1 <= α_2 is BD-Net's Eq. 11,

        -β_1 - β_2  where x < α_1,    β_1 - β_2  where α_1 <= x < α_2,    β_1 + β_2  where α_2 <= x.

    N branches have N + 1 levels, hence log2(N + 1) bits: 1 for a single branch (the plain binary
    convolution), 1.58 for two, 2 for three. The signs of the weights determine the order of the
    levels: (+, +) rises and (-, -) falls from interval to interval, (+, -) is highest and (-, +)
    lowest in the middle.

    The paper says "two binary convs in parallel"; that each has weights of its own is our
    interpretation. The initial values are our choice, too: boundaries that cut [-1, 1] into equal
    parts, and β_i such that a sum of N K independent signs, with K per window, starts with a
    variance of 1, like an input after batch norm.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        As in BinaryConv2d; depthwise with groups = in_channels = out_channels.
    branches : int
        The number N of branches.
    input_quantizer : Quantizer or name
        Applied to x - α_i.
    weight_quantizer, clip_value, rng
        As in BinaryLinear.

    Attributes
    ----------
    branches : ModuleList of Sequential
        Each is an RSign, which holds α_i, and a BinaryConv2d, which holds W_i and β_i (its scale).
    """

    branches: ModuleList

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        *,
        branches: int = 2,
        input_quantizer: Quantizer | str = "approx_sign",
        weight_quantizer: Quantizer | str | None = "ste_sign",
        clip_value: float | None = 1.0,
        rng: np.random.Generator | None = None,
    ) -> None:
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

    def convolutions(self) -> list[BinaryConv2d]:
        """List the binary convolutions of the branches, in order."""
        return [branch[1] for branch in self.branches]


class DualAdaBinConv2d(_Branches):
    """The 1.58-bit convolution on AdaBin: a sum of parallel AdaBin convolutions, two by default.

    Each branch adapts its own boundary (AdaBin's β_a, one for all channels) and output values (α_a,
    α_w, β_w); otherwise see `DualBinaryConv2d`. BD-Net mentions the combination without a formula;
    this one is our interpretation.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups
        As in Conv2d.
    branches : int
        The number N of branches.
    input_quantizer, weight_quantizer, rng
        As in AdaBinConv2d.

    Attributes
    ----------
    branches : ModuleList of AdaBinConv2d
    """

    branches: ModuleList

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        *,
        branches: int = 2,
        input_quantizer: Quantizer | str = "approx_sign",
        weight_quantizer: Quantizer | str = "ede_sign",
        rng: np.random.Generator | None = None,
    ) -> None:
        check_sizes("DualAdaBinConv2d", branches=branches)
        self.branches = ModuleList()
        for boundary in _boundaries(branches):
            conv = AdaBinConv2d(
                in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
                input_quantizer=input_quantizer, weight_quantizer=weight_quantizer, rng=rng,
            )  # fmt: skip
            conv.input_offset.data[...] = boundary
            self.branches.append(conv)

    def convolutions(self) -> list[AdaBinConv2d]:
        """List the AdaBin convolutions of the branches, in order."""
        return list(self.branches)
