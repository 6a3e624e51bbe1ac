"""Float layers, with PyTorch's names, arguments, defaults and state.

`inplace` is accepted where PyTorch has it and has no effect: a layer returns a new Tensor. Tensors
are float32 or float64. Activations take any shape and return the same one; images are (N, C, H, W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn import functional as F
from tinybnn.autograd import default_generator
from tinybnn.functional import pair
from tinybnn.functional.convolution import named_padding
from tinybnn.nn.module import Cost, Module, Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tinybnn.autograd import Tensor
    from tinybnn.typing import Array, FloatArray, Pair, Shape


def uniform_fan_in(shape: Shape, rng: np.random.Generator | None) -> NDArray[np.float32]:
    """Draw uniform numbers in ±1 / sqrt(fan_in), PyTorch's default for weights.

    Parameters
    ----------
    shape : (out, in) or (O, C, kh, kw)
    rng : numpy.random.Generator or None

    Returns
    -------
    array of that shape, float32
        Weights of convolutions are channels-last in memory, like images.
    """
    rng = default_generator() if rng is None else rng
    bound = 1.0 / np.sqrt(np.prod(shape[1:]))
    return channels_last(rng.uniform(-bound, bound, shape).astype(np.float32))


def channels_last(array: Array) -> Array:
    """Lay out an array (O, C, kh, kw) with C fastest in memory; return other ranks unchanged."""
    if array.ndim != 4:
        return array
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def check_sizes(layer: str, **sizes: Any) -> None:
    """Raise a ValueError that begins with `layer` unless each size is an int >= 1."""
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{layer}: {name} must be an int >= 1, got {size!r}")


class Linear(Module):
    """y = x @ weight.T + bias, from (..., in_features) to (..., out_features).

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    weight : (out_features, in_features) float32
    bias : (out_features,) float32 or None
    """

    in_features: int
    out_features: int
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_sizes(type(self).__name__, in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        shape = (out_features, in_features)
        self.weight = self._initial_weight(shape, rng)
        self.bias = Parameter(_initial_bias(shape, rng, out_features)) if bias else None

    def _initial_weight(self, shape: Shape, rng: np.random.Generator | None):
        return Parameter(uniform_fan_in(shape, rng))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias, fixed_order=not self.training)

    def cost(self, input_shape: Sequence[int]) -> Cost:
        products = int(np.prod(input_shape[:-1])) * self.in_features * self.out_features
        return self._cost((*input_shape[:-1], self.out_features), products)

    def _cost(self, output_shape: Sequence[int], products: int) -> Cost:
        """The cost with `products` multiply-accumulates; binary layers override their kind."""
        bits = 32 * sum(p.numel() for p in self.parameters())
        return Cost(tuple(output_shape), weight_bits=bits, flops=products)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Conv2d(Module):
    """2-D convolution of (N, in_channels, H, W); see `functional.conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation : int or pair of ints
        `padding` may be 'same' (odd kernels, stride 1) or 'valid'.
    groups : int
    bias : bool
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    weight : (out_channels, in_channels / groups, kh, kw) float32
    bias : (out_channels,) float32 or None
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        name = type(self).__name__
        check_sizes(name, in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups={groups} must divide in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = pair(name, "kernel_size", kernel_size, 1)
        self.stride = pair(name, "stride", stride, 1)
        self.dilation = pair(name, "dilation", dilation, 1)
        padding = named_padding(name, padding, self.kernel_size, self.stride, self.dilation)
        self.padding = pair(name, "padding", padding, 0)
        shape = self.weight_shape
        self.weight = self._initial_weight(shape, rng)
        self.bias = Parameter(_initial_bias(shape, rng, out_channels)) if bias else None

    _initial_weight = Linear._initial_weight

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """The shape of the weight."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def _options(self):
        """Stride, padding, dilation and groups by name."""
        return {
            "stride": self.stride, "padding": self.padding, "dilation": self.dilation,
            "groups": self.groups,
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, **self._options, fixed_order=not self.training)

    def cost(self, input_shape: Sequence[int]) -> Cost:
        geometry = F.Geometry((1, *input_shape), self.weight_shape, **self._options)
        products = int(np.prod(geometry.output)) * int(np.prod(self.weight_shape))
        return self._cost((self.out_channels, *geometry.output), products)

    _cost = Linear._cost

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        for name, default in (
            ("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1),
        ):  # fmt: skip
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text + f", bias={self.bias is not None}"


def _initial_bias(weight_shape, rng: np.random.Generator | None, count):
    """Draw `count` uniform values in ±1 / sqrt(fan_in)."""
    rng = default_generator() if rng is None else rng
    bound = 1.0 / np.sqrt(np.prod(weight_shape[1:]))
    return rng.uniform(-bound, bound, count).astype(np.float32)


class ConvTranspose2d(Conv2d):
    """2-D transposed convolution of (N, in_channels, H, W); see `functional.conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, output_padding : int or pair of ints
    groups : int
    bias : bool
    dilation : int or pair of ints
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    weight : (in_channels, out_channels / groups, kh, kw) float32
    bias : (out_channels,) float32 or None
    """

    output_padding: tuple[int, int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.output_padding = pair("ConvTranspose2d", "output_padding", output_padding, 0)
        padding = pair("ConvTranspose2d", "padding", padding, 0)  # no 'same'
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, rng=rng
        )

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def cost(self, input_shape: Sequence[int]) -> Cost:
        size = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + o + 1
            for n, k, s, p, d, o in zip(
                input_shape[1:], self.kernel_size, self.stride, self.padding, self.dilation,
                self.output_padding, strict=True,
            )
        )  # fmt: skip
        products = int(np.prod(input_shape[1:])) * int(np.prod(self.weight_shape))
        return self._cost((self.out_channels, *size), products)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(
            x, self.weight, self.bias, **self._options, output_padding=self.output_padding,
            fixed_order=not self.training,
        )  # fmt: skip

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.output_padding != (0, 0):
            text = text.replace(", bias=", f", output_padding={self.output_padding}, bias=")
        return text


class _BatchNorm(Module):
    num_features: int
    eps: float
    momentum: float
    weight: Parameter | None
    bias: Parameter | None
    running_mean: FloatArray
    running_var: FloatArray
    num_batches_tracked: NDArray[np.int64]

    _ndim = None

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ) -> None:
        check_sizes(type(self).__name__, num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(np.ones(num_features, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_features, np.float32)) if affine else None
        self.register_buffer("running_mean", np.zeros(num_features, np.float32))
        self.register_buffer("running_var", np.ones(num_features, np.float32))
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64))

    def forward(self, x: Tensor) -> Tensor:
        if np.ndim(x) != self._ndim:
            raise ValueError(
                f"{type(self).__name__}: x must have {self._ndim} dimensions, got shape {x.shape}"
            )
        output = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            self.momentum, self.eps,
        )  # fmt: skip
        if self.training:
            self.num_batches_tracked += 1
        return output

    def cost(self, input_shape: Sequence[int]) -> Cost:
        """Compute the `Cost`: in evaluation the layer is alpha x + beta, two numbers a channel."""
        bits = 2 * 8 * self.running_mean.itemsize * self.num_features
        return Cost(tuple(input_shape), weight_bits=bits)

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={affine}"


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) features; see `functional.batch_norm`.

    Parameters
    ----------
    num_features : int
        C.
    eps : float
        Added to the variance.
    momentum : float
        Weight of each batch in the running statistics.
    affine : bool
        Learn a scale and a shift for each feature.

    Attributes
    ----------
    weight, bias : (C,) float32 or None
    running_mean, running_var : (C,) float32 buffers
    num_batches_tracked : int64 buffer
    """

    _ndim = 2


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of the channels of (N, C, H, W) images; see `BatchNorm1d`."""

    _ndim = 4


class ReLU(Module):
    """max(x, 0)."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class LeakyReLU(Module):
    """x where x > 0, else negative_slope * x."""

    negative_slope: float

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class PReLU(Module):
    """x where x > 0, else weight * x, with a learned weight; x has the shape (N, C, ...).

    Parameters
    ----------
    num_parameters : int
        1, or the number of channels.
    init : float

    Attributes
    ----------
    weight : (num_parameters,) float32
    """

    num_parameters: int
    weight: Parameter

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        check_sizes("PReLU", num_parameters=num_parameters)
        self.num_parameters = num_parameters
        self.weight = Parameter(np.full(num_parameters, init, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class Softplus(Module):
    """log(1 + exp(beta x)) / beta."""

    beta: float

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta}"


class Hardtanh(Module):
    """Limit to [min_val, max_val]."""

    min_val: float
    max_val: float

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        self.min_val, self.max_val = min_val, max_val

    def forward(self, x: Tensor) -> Tensor:
        return F.hardtanh(x, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}"


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return F.sigmoid(x)


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return F.tanh(x)


class Hardsigmoid(Module):
    """clamp(x + 3, 0, 6) / 6; see `functional.hardsigmoid`."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x)


class Hardswish(Module):
    """x clamp(x + 3, 0, 6) / 6; see `functional.hardswish`."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x)


class _Pool2d(Module):
    kernel_size: Pair
    stride: Pair
    padding: Pair

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> None:
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}"
        return text + (f", padding={self.padding}" if self.padding else "")


class MaxPool2d(_Pool2d):
    """Maximum over windows of (N, C, H, W); see `functional.max_pool2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pool2d):
    """Mean over windows of (N, C, H, W); see `functional.avg_pool2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


class AdaptiveAvgPool2d(Module):
    """Mean over equal parts of (N, C, H, W); see `functional.adaptive_avg_pool2d`."""

    output_size: Pair

    def __init__(self, output_size: Pair) -> None:
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class ChannelShuffle(Module):
    """Interleave the channels of groups in (N, C, H, W); see `functional.channel_shuffle`."""

    groups: int

    def __init__(self, groups: int) -> None:
        check_sizes("ChannelShuffle", groups=groups)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.channel_shuffle(x, self.groups)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"


class ReplicateChannels(Module):
    """Repeat the channels of x cyclically, or truncate them, to `out_channels`.

    Output channel c is input channel c mod `in_channels`: (N, in_channels, H, W) becomes
    (N, out_channels, H, W).

    As a shortcut between layers with different numbers of channels this is the broadcast residual
    of BD-Net (Tables 4 and 5). The paper says that the channels of the previous layer are
    replicated to match the next; their order, and the truncation, are our reading. With twice the
    channels it equals ReActNet's two 1×1 convolutions side by side, each with the shortcut added.

    Parameters
    ----------
    in_channels, out_channels : int
    """

    in_channels: int
    out_channels: int

    def __init__(self, in_channels: int, out_channels: int) -> None:
        check_sizes("ReplicateChannels", in_channels=in_channels, out_channels=out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"ReplicateChannels: x must have the shape (N, {self.in_channels}, H, W), "
                f"got {x.shape}"
            )
        return F.take_channels(x, np.arange(self.out_channels) % self.in_channels)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"


class SqueezeExcite(Module):
    """Rescale each channel by a gate that two small layers compute from the channel means.

    x hardsigmoid(fc2(relu(fc1(mean of x over the image)))) for x (N, C, H, W), with 1×1
    convolutions fc1 and fc2. Hu et al. 2018, with the hard sigmoid of MobileNetV3 (Howard et al.
    2019, section 5.3).

    Parameters
    ----------
    channels : int
    squeezed : int
        Number of channels between the two layers.
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    fc1, fc2 : Conv2d
    """

    pool: AdaptiveAvgPool2d
    fc1: Conv2d
    fc2: Conv2d

    def __init__(
        self, channels: int, squeezed: int, *, rng: np.random.Generator | None = None
    ) -> None:
        check_sizes("SqueezeExcite", channels=channels, squeezed=squeezed)
        self.pool = AdaptiveAvgPool2d(1)
        self.fc1 = Conv2d(channels, squeezed, 1, rng=rng)
        self.fc2 = Conv2d(squeezed, channels, 1, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc2(F.relu(self.fc1(self.pool(x))))  # (N, C, 1, 1)
        return x * F.hardsigmoid(weight)


class Flatten(Module):
    """(N, C, H, W) -> (N, C H W), in PyTorch's order (channels slowest)."""

    start_dim: int
    end_dim: int

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return F.flatten(x, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Identity(Module):
    """Return x."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Dropout(Module):
    """Zero elements with probability p in training; see `functional.dropout`.

    Parameters
    ----------
    p : float
    inplace : bool
        Ignored.
    rng : numpy.random.Generator, optional
        Source of the random numbers.
    """

    p: float
    rng: np.random.Generator | None

    def __init__(
        self, p: float = 0.5, inplace: bool = False, *, rng: np.random.Generator | None = None
    ) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"{type(self).__name__}: p must be in [0, 1), got {p}")
        self.p, self.rng = p, rng

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training, self.rng)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout2d(Dropout):
    """Zero whole channels of (N, C, H, W) with probability p in training; see `Dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, self.p, self.training, self.rng)


class Upsample(Module):
    """Resize images (N, C, H, W); see `functional.interpolate`.

    Parameters
    ----------
    size : int or pair of ints, optional
        Size of the result; exclusive with `scale_factor`.
    scale_factor : float or pair of floats, optional
    mode : 'nearest' or 'bilinear'
    align_corners : bool, optional
        For 'bilinear' only.
    """

    size: Pair | None
    scale_factor: float | tuple[float, float] | None
    mode: str
    align_corners: bool | None

    def __init__(
        self,
        size: Pair | None = None,
        scale_factor: float | tuple[float, float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        self.size, self.scale_factor = size, scale_factor
        self.mode, self.align_corners = mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners)

    def extra_repr(self) -> str:
        name = "size" if self.scale_factor is None else "scale_factor"
        return f"{name}={getattr(self, name)}, mode={self.mode!r}"
