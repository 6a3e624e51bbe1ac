"""Normalisation by statistics of each sample, and scaling by a constant in its place.

`GroupNorm` and `LayerNorm` have PyTorch's names, arguments and defaults. The layers return a Tensor
of the input's shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn import functional as F
from tinybnn.nn.layers import check_sizes
from tinybnn.nn.module import Module, Parameter

if TYPE_CHECKING:
    from tinybnn.autograd import Tensor
    from tinybnn.typing import Shape


class GroupNorm(Module):
    """Normalise each sample of (N, C, ...) by the statistics of each group of channels.

    See `functional.group_norm`.

    Parameters
    ----------
    num_groups : int
        Must divide num_channels.
    num_channels : int
    eps : float
        Added to the variance.
    affine : bool
        Learn a scale and a shift for each channel.
    bias : bool
        With False there is a scale only.

    Attributes
    ----------
    weight, bias : (num_channels,) float32 or None
    """

    num_groups: int
    num_channels: int
    eps: float
    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
    ) -> None:
        check_sizes("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: num_groups={num_groups} must divide num_channels={num_channels}"
            )
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = Parameter(np.ones(num_channels, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_channels, np.float32)) if affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={affine}"


class LayerNorm(Module):
    """Normalise over the last axes of (..., *normalized_shape); see `functional.layer_norm`.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The sizes of the last axes.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Learn a scale and a shift for each element.
    bias : bool
        With False there is a scale only.

    Attributes
    ----------
    weight, bias : (*normalized_shape,) float32 or None
    """

    normalized_shape: Shape
    eps: float
    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Shape,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        shape = tuple(np.atleast_1d(normalized_shape).tolist())
        check_sizes("LayerNorm", **{f"normalized_shape[{i}]": n for i, n in enumerate(shape)})
        self.normalized_shape, self.eps, affine = shape, eps, elementwise_affine
        self.weight = Parameter(np.ones(shape, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(shape, np.float32)) if affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={affine}"


class FanInScale(Module):
    """Compute x / sqrt(fan_in) + bias for each channel; see `functional.fan_in_scale`.

    It takes the place of a batch norm behind a binary layer. A sum of `fan_in` signs has about the
    variance `fan_in`, so that a constant brings it to the order of 1. Samples are computed
    independently of each other, in training as in evaluation, and the only state is the bias: in
    federated averaging there are no statistics that differ between clients. A sign behind it
    compiles to one integer threshold for each channel.

    Parameters
    ----------
    num_features : int
        C.
    fan_in : int
        The number of terms of each sum: the ``in_features`` of a dense layer, kh kw C / groups of a
        convolution. Terms that padding sets to 0 count as well.
    bias : bool
        Learn a shift for each channel.

    Attributes
    ----------
    bias : (C,) float32 or None
        Starts at 0.
    """

    num_features: int
    fan_in: int
    bias: Parameter | None

    def __init__(self, num_features: int, fan_in: int, bias: bool = True) -> None:
        check_sizes("FanInScale", num_features=num_features, fan_in=fan_in)
        self.num_features, self.fan_in = int(num_features), int(fan_in)
        self.bias = Parameter(np.zeros(num_features, np.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if np.ndim(x) < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"FanInScale: x must have the shape (N, {self.num_features}, ...), got {x.shape}"
            )
        return F.fan_in_scale(x, self.fan_in, self.bias)

    def extra_repr(self) -> str:
        return f"{self.num_features}, fan_in={self.fan_in}, bias={self.bias is not None}"
