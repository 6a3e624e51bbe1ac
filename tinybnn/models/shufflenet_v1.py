"""ShuffleNet V1 with three groups: grouped 1×1 convolutions and channel shuffles.

    layer                                    output (224)    channels
    conv 3×3, stride 2 (real)                112×112         24
    max-pool 3×3, stride 2                   56×56           24
    unit with stride 2, 3 × unit             28×28           240
    unit with stride 2, 7 × unit             14×14           480
    unit with stride 2, 3 × unit             7×7             960
    mean, dense (real)                                       num_classes

Unit: a 1×1 layer to a quarter of the unit's channels, a shuffle of the groups, a 3×3 depth-wise
layer, a 1×1 layer. Its output is added to the unit's input; with a stride of 2 it is concatenated
with the input's average over 3×3 pixels, stride 2. The very first 1×1 layer has one group, since it
has few input channels. Zhang et al. 2018, Table 1, g = 3. In the binary forms each of the three
layers has the shortcut of `models.blocks`; for the 1×1 layers, which change the number of channels,
it is the broadcast residual of BD-Net (Table 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinybnn import functional as F
from tinybnn import nn
from tinybnn.autograd import default_generator
from tinybnn.models.blocks import check_arguments, classifier, make_method, scaled, stem, stride_for

if TYPE_CHECKING:
    import numpy as np

    from tinybnn.autograd import Tensor
    from tinybnn.models.blocks import Layer, Method

GROUPS = 3
STEM = 24

# Stages: (output channels, number of units); the first unit of each has stride 2.
STAGES = ((240, 4), (480, 8), (960, 4))


class ShuffleUnit(nn.Module):
    """A shuffle unit: (N, in_channels, H, W) -> (N, out_channels, OH, OW).

    Parameters
    ----------
    factory : Method
    in_channels, out_channels : int
    stride : 1 or 2
        With stride 1, in_channels must equal out_channels.
    first_groups : int
        Groups of the first 1×1 layer.
    rng : numpy.random.Generator, optional
    """

    in_channels: int
    out_channels: int
    reduce: Layer
    shuffle: nn.ChannelShuffle
    depthwise: Layer
    expand: Layer
    pool: nn.AvgPool2d | None
    activation: nn.Module

    def __init__(
        self,
        factory: Method,
        in_channels: int,
        out_channels: int,
        stride: int,
        first_groups: int = GROUPS,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.in_channels, self.out_channels = in_channels, out_channels
        middle = out_channels // 4
        branch = out_channels - in_channels if stride == 2 else out_channels
        self.reduce = factory.pointwise(
            in_channels, middle, first_groups, factory.activation(middle), rng=rng
        )
        self.shuffle = nn.ChannelShuffle(GROUPS)
        self.depthwise = factory.spatial(middle, 3, stride, rng=rng)
        self.expand = factory.pointwise(middle, branch, GROUPS, has_shortcut=stride == 2, rng=rng)
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.activation = factory.activation(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.depthwise(self.shuffle(self.reduce(x))))
        y = x + y if self.pool is None else F.cat([self.pool(x), y], 1)
        return self.activation(y)


def shufflenet_v1(
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
    in_channels: int = 3,
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """Build ShuffleNet V1.

    Parameters
    ----------
    width : float
        Factor of all channel counts; output channels of units are rounded to multiples of 12.
    input_size : int
        Height and width of the images: a multiple of 16 times the stem's stride.
    num_classes : int
    method : 'float', 'reactnet', 'adabin', 'bdnet-a' or 'bdnet-b'
        'reactnet' and 'adabin' have regular 3×3 layers instead of depth-wise ones.
    base, broadcast_residual, dual, pre_bn
        As in `mobilenet_v1`.
    stem_stride : 1 or 2, optional
        Default: 2 for images above 32 pixels (BD-Net, Table 4), else 1.
    in_channels : int
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Returns
    -------
    Sequential
        (N, in_channels, input_size, input_size) images -> (N, num_classes) logits.
    """
    factory = make_method("shufflenet_v1", method, base, broadcast_residual, dual, pre_bn)
    stem_stride = stride_for("shufflenet_v1", "stem_stride", stem_stride, input_size, 32)
    check_arguments("shufflenet_v1", width, input_size, 16 * stem_stride)
    rng = default_generator() if rng is None else rng
    channels = scaled(STEM, width, GROUPS)
    layers = [
        stem(factory, in_channels, channels, stem_stride, rng=rng), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    for number, (outputs, units) in enumerate(STAGES):
        outputs = scaled(outputs, width, 4 * GROUPS)
        for unit in range(units):
            is_first = number == unit == 0
            layers.append(
                ShuffleUnit(
                    factory, channels, outputs, 1 if unit else 2, 1 if is_first else GROUPS, rng
                )
            )
            channels = outputs
    return nn.Sequential(*layers, *classifier(channels, num_classes, rng))
