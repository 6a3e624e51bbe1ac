"""Normalisation by statistics of each sample, with PyTorch's names, arguments and defaults.

The layers return a Tensor of the input's shape.
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
