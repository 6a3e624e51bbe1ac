"""MobileNet V3-Small: inverted residuals with squeeze-and-excite.

    layer (k: kernel of the depth-wise layer)             output (224)    channels
    conv 3×3, stride 2 (real), h-swish                    112×112         16
    block, k = 3, stride 2, 16 wide, excite               56×56           16
    block, k = 3, stride 2, 72 wide                       28×28           24
    block, k = 3, 88 wide                                 28×28           24
    block, k = 5, stride 2, 96 wide, excite, h-swish      14×14           40
    2 × block, k = 5, 240 wide, excite, h-swish           14×14           40
    block, k = 5, 120 wide, excite, h-swish               14×14           48
    block, k = 5, 144 wide, excite, h-swish               14×14           48
    block, k = 5, stride 2, 288 wide, excite, h-swish     7×7             96
    2 × block, k = 5, 576 wide, excite, h-swish           7×7             96
    conv 1×1, h-swish                                     7×7             576
    mean, dense (real), h-swish                                           1024
    dense (real)                                                          num_classes

Block: a 1×1 layer that widens (none if the width equals the number of input channels), a k×k
depth-wise layer with the stride, squeeze-and-excite with a quarter of the channels, and a 1×1 layer
without activation; the block's input is added if the shapes are equal. The activation is ReLU
unless h-swish is given. Howard et al. 2019, Table 2. In the binary forms each layer has the
shortcut of `models.blocks`. Inferred are: that squeeze-and-excite is kept and real, and that the
last 1×1 convolution is binary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinybnn import nn
from tinybnn.autograd import default_generator
from tinybnn.models.blocks import check_arguments, make_method, scaled, stem, stride_for

if TYPE_CHECKING:
    import numpy as np

    from tinybnn.autograd import Tensor
    from tinybnn.models.blocks import Layer, Method

STEM, HEAD, FEATURES = 16, 576, 1024

# Blocks: (kernel, wide, output channels, stride, excite, h-swish).
BLOCKS = (
    (3, 16, 16, 2, True, False),
    (3, 72, 24, 2, False, False),
    (3, 88, 24, 1, False, False),
    (5, 96, 40, 2, True, True),
    (5, 240, 40, 1, True, True),
    (5, 240, 40, 1, True, True),
    (5, 120, 48, 1, True, True),
    (5, 144, 48, 1, True, True),
    (5, 288, 96, 2, True, True),
    (5, 576, 96, 1, True, True),
    (5, 576, 96, 1, True, True),
)


class InvertedResidual(nn.Module):
    """An inverted residual block: (N, in_channels, H, W) -> (N, out_channels, OH, OW).

    Parameters
    ----------
    factory : Method
    in_channels, wide, out_channels : int
    kernel_size, stride : int
    excite, hardswish : bool
    rng : numpy.random.Generator, optional
    """

    widen: Layer | None
    depthwise: Layer
    excite: nn.SqueezeExcite | None
    is_residual: bool
    project: Layer

    def __init__(
        self,
        factory: Method,
        in_channels: int,
        wide: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        excite: bool,
        hardswish: bool,
        rng: np.random.Generator | None = None,
    ) -> None:
        activation = nn.Hardswish if hardswish else nn.ReLU
        self.widen = None
        if wide != in_channels:
            self.widen = factory.pointwise(
                in_channels, wide, activation=factory.activation(wide, activation), rng=rng
            )
        self.depthwise = factory.spatial(
            wide, kernel_size, stride, factory.activation(wide, activation), rng
        )
        squeezed = scaled(wide, 0.25, 8)
        self.excite = nn.SqueezeExcite(wide, squeezed, rng=rng) if excite else None
        self.is_residual = stride == 1 and in_channels == out_channels
        self.project = factory.pointwise(
            wide, out_channels, has_shortcut=not self.is_residual, rng=rng
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.widen is None else self.widen(x)
        y = self.depthwise(y)
        y = y if self.excite is None else self.excite(y)
        y = self.project(y)
        return x + y if self.is_residual else y


def mobilenet_v3_small(
    width: float = 1.0,
    input_size: int = 224,
    num_classes: int = 1000,
    method: str = "float",
    *,
    base: str = "reactnet",
    broadcast_residual: bool = True,
    dual: bool = True,
    pre_bn: bool = True,
    stem_stride: int | None = None,
    first_stride: int | None = None,
    in_channels: int = 3,
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """Build MobileNet V3-Small.

    Parameters
    ----------
    width : float
        Factor of all channel counts, which are rounded to multiples of 8.
    input_size : int
        Height and width of the images: a multiple of 8 times the strides below.
    num_classes : int
    method : 'float', 'reactnet', 'adabin', 'bdnet-a' or 'bdnet-b'
        'reactnet' and 'adabin' have regular k×k layers instead of depth-wise ones.
    base, broadcast_residual, dual, pre_bn
        As in `mobilenet_v1`.
    stem_stride, first_stride : 1 or 2, optional
        Strides of the first convolution and of the first block. Default: 2 for images above 32 and
        above 64 pixels, respectively (BD-Net, Table 5), else 1.
    in_channels : int
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Returns
    -------
    Sequential
        (N, in_channels, input_size, input_size) images -> (N, num_classes) logits.
    """
    factory = make_method("mobilenet_v3_small", method, base, broadcast_residual, dual, pre_bn)
    stem_stride = stride_for("mobilenet_v3_small", "stem_stride", stem_stride, input_size, 32)
    first_stride = stride_for("mobilenet_v3_small", "first_stride", first_stride, input_size, 64)
    check_arguments("mobilenet_v3_small", width, input_size, 8 * stem_stride * first_stride)
    rng = default_generator() if rng is None else rng
    channels = scaled(STEM, width, 8)
    layers = [stem(factory, in_channels, channels, stem_stride, nn.Hardswish, rng=rng)]
    for number, (kernel_size, wide, outputs, stride, excite, hardswish) in enumerate(BLOCKS):
        before, channels = channels, scaled(outputs, width, 8)
        layers.append(
            InvertedResidual(
                factory, before, scaled(wide, width, 8), channels, kernel_size,
                stride if number else first_stride, excite, hardswish, rng,
            )
        )  # fmt: skip
    head, features = scaled(HEAD, width, 8), scaled(FEATURES, width, 8)
    return nn.Sequential(
        *layers,
        factory.pointwise(
            channels, head, activation=factory.activation(head, nn.Hardswish), rng=rng
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(head, features, rng=rng),
        nn.Hardswish(),
        nn.Linear(features, num_classes, rng=rng),
    )
