"""Layers of binary networks: a convolution, a batch norm, an activation, and shortcuts.

    method        k×k layer             1×1 layer    sign, activation
    float         depth-wise, real      real         none, ReLU or h-swish
    birealnet     regular, binary       binary       sign, none
    reactnet      regular, binary       binary       RSign, RPReLU
    adabin        regular, binary       binary       adapted sets, Maxout
    bdnet-a       depth-wise, binary    binary       as its base: reactnet or adabin
    bdnet-b       as bdnet-a, but real where it reduces the image

(Bi-Real Net: Liu et al. 2018; ReActNet: Liu et al. 2020; AdaBin: Tu et al. 2022. A ResNet's
convolutions are regular in the float network too.) Activations are placed as in the float network.
A binary layer has a shortcut around convolution and batch norm:

    y = activation(BN(conv(x)) + s(x)),    s(x) = x, averaged over 2×2 pixels under a stride of 2.

Where the number of channels changes, s(x) replicates them to the new number (`ReplicateChannels`),
BD-Net's broadcast residual; without it such a layer has no shortcut. A shortcut of the float
network around several layers is kept, and the last of these layers then has none: two parallel
shortcuts would double the signal in every unit.

BD-Net's depth-wise layer adds its input before the batch norm as well,

    y = activation(BN(conv(x) + s(x)) + s(x)),

whose Jacobian is α J_dw + (α + 1) I (Eq. 4), with α the factor of the batch norm, instead of
α J_dw + I (Eq. 3). Its convolution is the 1.58-bit one of Eq. 11 (`nn.DualBinaryConv2d`). The
paper's code was not available. Inferred are: that both shortcuts are averaged under a stride, that
a real depth-wise layer has only the shortcut behind its batch norm, the places of the activations,
and how broadcast residuals combine with the shortcuts of units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING

from tinybnn import nn
from tinybnn.quantizers import MagnitudeAwareSign

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from tinybnn.autograd import Tensor

METHODS = ("float", "reactnet", "adabin", "bdnet-a", "bdnet-b")
NORMS = ("batch", "layer", "none")  # of dense networks


@dataclass(frozen=True)
class Method:
    """Factory for the layers of a network; see the table in the module's docstring.

    Attributes
    ----------
    name : str
    base : str
        For BD-Net: 'reactnet' or 'adabin'. Other methods are their own base.
    broadcast_residual : bool
        Add shortcuts where the number of channels changes.
    dual : bool
        BD-Net only: two binary depth-wise convolutions in parallel, not one.
    pre_bn : bool
        BD-Net only: the shortcut before the batch norm.
    real_pre_bn : bool
        BD-Net-B only: that shortcut in its real depth-wise layers, too.
    """

    name: str
    base: str
    broadcast_residual: bool = True
    dual: bool = True
    pre_bn: bool = True
    real_pre_bn: bool = False

    @property
    def is_float(self) -> bool:
        return self.name == "float"

    def activation(self, channels: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
        """Return the module that takes the place of the float network's activation."""
        if self.base == "birealnet":
            return nn.Identity()
        if self.base == "reactnet":
            return nn.RPReLU(channels)
        return nn.Maxout(channels) if self.base == "adabin" else activation()

    def pointwise(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        activation: nn.Module | None = None,
        has_shortcut: bool = True,
        rng: np.random.Generator | None = None,
    ) -> Layer:
        """Build a 1×1 layer: (N, in_channels, H, W) -> (N, out_channels, H, W)."""
        conv = self.conv(in_channels, out_channels, 1, groups=groups, rng=rng)
        shortcut = self.shortcut(in_channels, out_channels) if has_shortcut else None
        return Layer(conv, nn.BatchNorm2d(out_channels), activation, shortcut)

    def spatial(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        activation: nn.Module | None = None,
        rng: np.random.Generator | None = None,
    ) -> Layer:
        """Build a k×k layer, depth-wise where the method has such: (N, channels, H, W) -> same.

        With a stride of 2 the image is halved.
        """
        pre_bn, geometry = False, {"stride": stride, "padding": kernel_size // 2}
        if self.is_float or (self.name == "bdnet-b" and stride > 1):
            conv = nn.Conv2d(
                channels, channels, kernel_size, groups=channels, bias=False, rng=rng, **geometry
            )
            pre_bn = self.real_pre_bn and not self.is_float
        elif self.name.startswith("bdnet"):
            conv = nn.DualAdaBinConv2d if self.base == "adabin" else nn.DualBinaryConv2d
            geometry |= {"groups": channels, "branches": 2 if self.dual else 1}
            conv = conv(channels, channels, kernel_size, rng=rng, **geometry)
            pre_bn = self.pre_bn
        else:
            conv = self.conv(channels, channels, kernel_size, stride, rng=rng)
        shortcut = self.shortcut(channels, channels, stride)
        return Layer(conv, nn.BatchNorm2d(channels), activation, shortcut, pre_bn)

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        rng: np.random.Generator | None = None,
    ) -> nn.Module:
        """Build a regular convolution, preceded by the sign of its input where it is binary."""
        geometry = {"stride": stride, "padding": kernel_size // 2, "groups": groups, "rng": rng}
        if self.is_float:
            return nn.Conv2d(in_channels, out_channels, kernel_size, bias=False, **geometry)
        if self.base == "adabin":
            return nn.AdaBinConv2d(in_channels, out_channels, kernel_size, **geometry)
        sign = nn.RSign(in_channels) if self.base == "reactnet" else nn.Quantize("approx_sign")
        conv = nn.BinaryConv2d(
            in_channels, out_channels, kernel_size, input_quantizer=None,
            weight_quantizer=MagnitudeAwareSign(scale_gradient=False), **geometry,
        )  # fmt: skip
        return nn.Sequential(sign, conv)

    def shortcut(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module | None:
        """Build the shortcut from a layer's input to its output; None where it has none."""
        if self.is_float or (in_channels != out_channels and not self.broadcast_residual):
            return None
        parts = [nn.AvgPool2d(2)] if stride == 2 else []
        if in_channels != out_channels:
            parts.append(nn.ReplicateChannels(in_channels, out_channels))
        return nn.Sequential(*parts)


class Layer(nn.Module):
    """activation(norm(conv(x) [+ shortcut(x)]) + shortcut(x)).

    Parameters
    ----------
    conv, norm : Module
    activation, shortcut : Module or None
    pre_bn : bool
        Add the shortcut also before the norm.
    """

    conv: nn.Module
    norm: nn.Module
    activation: nn.Module | None
    shortcut: nn.Module | None
    pre_bn: bool

    def __init__(
        self,
        conv: nn.Module,
        norm: nn.Module,
        activation: nn.Module | None = None,
        shortcut: nn.Module | None = None,
        pre_bn: bool = False,
    ) -> None:
        self.conv, self.norm, self.activation = conv, norm, activation
        self.shortcut, self.pre_bn = shortcut, pre_bn

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.shortcut is None:
            y = self.norm(y)
        else:
            s = self.shortcut(x)
            y = self.norm(y + s if self.pre_bn else y) + s
        return y if self.activation is None else self.activation(y)

    def extra_repr(self) -> str:
        return "pre_bn" if self.pre_bn else ""


def make_method(
    network: str,
    name: str,
    base: str = "reactnet",
    broadcast_residual: bool = True,
    dual: bool = True,
    pre_bn: bool = True,
    real_pre_bn: bool = False,
    known: Sequence[str] = METHODS,
) -> Method:
    """Look up a `Method`; errors are prefixed with the network's name."""
    if name not in known:
        raise ValueError(f"{network}: method must be one of {', '.join(known)}, got {name!r}")
    if base not in ("reactnet", "adabin"):
        raise ValueError(f"{network}: base must be 'reactnet' or 'adabin', got {base!r}")
    base = base if name.startswith("bdnet") else name
    return Method(name, base, bool(broadcast_residual), bool(dual), bool(pre_bn), bool(real_pre_bn))


def dense_norm(
    network: str, norm: str, fan_in: int, features: int, is_last: bool = False
) -> nn.Module:
    """Build what follows a binary dense layer: (N, features) -> (N, features).

    Parameters
    ----------
    network : str
        Prefix of the error for an unknown norm.
    norm : 'batch', 'layer' or 'none'
        A batch norm; a layer norm on hidden sums; or no norm: the sums divided by sqrt(fan_in), and
        a learned shift (`nn.FanInScale`).
    fan_in, features : int
        Inputs and outputs of the dense layer.
    is_last : bool
        Whether class scores follow: a layer norm is then replaced by `nn.FanInScale`, since the
        scores of a sample, unlike hidden units, must not be forced to one mean and variance.
    """
    if norm not in NORMS:
        raise ValueError(f"{network}: norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if norm == "batch":
        return nn.BatchNorm1d(features)
    if norm == "layer" and not is_last:
        return nn.LayerNorm(features)
    return nn.FanInScale(features, fan_in)


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Round ``width * channels`` (half up) to a multiple of `multiple`, at least `multiple`."""
    return max(1, math.floor(channels * width / multiple + 0.5)) * multiple


def stride_for(network: str, argument: str, stride: int | None, input_size: int, limit: int) -> int:
    """Check a stride of 1 or 2; None defaults to 2 for images above `limit` pixels, else 1."""
    if stride not in (None, 1, 2):
        raise ValueError(f"{network}: {argument} must be 1 or 2, got {stride!r}")
    return stride or (2 if isinstance(input_size, Integral) and input_size > limit else 1)


def check_arguments(network: str, width: float, input_size: int, reduction: int) -> None:
    """Check that the width is positive and the image size a multiple of the total stride."""
    if not width > 0:
        raise ValueError(f"{network}: width must be positive, got {width!r}")
    is_size = isinstance(input_size, Integral) and input_size >= 1
    if not is_size or input_size % reduction:
        raise ValueError(
            f"{network}: input_size must be a multiple of {reduction}, the product of the strides, "
            f"got {input_size!r}"
        )


def stem(
    factory: Method,
    in_channels: int,
    channels: int,
    stride: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    kernel_size: int = 3,
    rng: np.random.Generator | None = None,
) -> Layer:
    """Build the first layer, real; only the float network has an activation in it."""
    conv = nn.Conv2d(
        in_channels, channels, kernel_size, stride, kernel_size // 2, bias=False, rng=rng
    )
    return Layer(conv, nn.BatchNorm2d(channels), activation() if factory.is_float else None)


def classifier(
    channels: int, num_classes: int, rng: np.random.Generator | None = None
) -> list[nn.Module]:
    """Build the last layers: the mean over the image and a real dense layer.

    (N, channels, H, W) -> (N, num_classes).
    """
    return [
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes, rng=rng)
    ]  # fmt: skip
