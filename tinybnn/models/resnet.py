"""ResNet-18 and ResNet-20, float and in the binary form of Bi-Real Net.

    ResNet-18                 output (224)    channels
    conv 7×7, stride 2        112×112         64
    max-pool 3×3, stride 2    56×56           64
    2 × block                 56×56           64
    2 × block, stride 2       28×28           128
    2 × block, stride 2       14×14           256
    2 × block, stride 2       7×7             512
    mean, dense                               num_classes

    ResNet-20                 output (32)     channels
    conv 3×3                  32×32           16
    3 × block                 32×32           16
    3 × block, stride 2       16×16           32
    3 × block, stride 2       8×8             64
    mean, dense                               num_classes

Block: two 3×3 convolutions; the first one of a stage has the stride. The first convolution and the
dense layer are real. He et al. 2016, Table 1 and section 4.2. For small images ResNet-18 begins
with a 3×3 convolution of stride 1 and has no max-pool.

The float block has one shortcut around both convolutions, the binary one a shortcut around each
(Bi-Real Net, Liu et al. 2018, Fig. 3). With a stride of 2 the shortcut is, in ResNet-18, an average
over 2×2 pixels followed by a real 1×1 convolution and a batch norm (float: that convolution with
stride 2, without the average); in ResNet-20 the average (float: every second pixel), padded with
zero channels, half of them before and half behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinybnn import functional as F
from tinybnn import nn
from tinybnn.autograd import default_generator
from tinybnn.models.blocks import (
    Layer,
    check_arguments,
    classifier,
    make_method,
    scaled,
    stem,
    stride_for,
)

if TYPE_CHECKING:
    import numpy as np

    from tinybnn.autograd import Tensor

METHODS = ("float", "birealnet", "reactnet", "adabin")

# Stages: (output channels, number of blocks); all but the first halve the image.
RESNET18 = ((64, 2), (128, 2), (256, 2), (512, 2))
RESNET20 = ((16, 3), (32, 3), (64, 3))


class ZeroChannels(nn.Module):
    """Pad with channels of zeros: (N, in_channels, H, W) -> (N, out_channels, H, W).

    Parameters
    ----------
    in_channels, out_channels : int
    """

    widths: tuple[int, int]

    def __init__(self, in_channels: int, out_channels: int) -> None:
        before = (out_channels - in_channels) // 2
        self.widths = before, out_channels - in_channels - before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, *self.widths))

    def extra_repr(self) -> str:
        return f"widths={self.widths}"


class BasicBlock(nn.Module):
    """The float block: relu(second(first(x)) + shortcut(x)).

    Parameters
    ----------
    first, second : Layer
    shortcut : Module or None
    """

    first: Layer
    second: Layer
    shortcut: nn.Module | None

    def __init__(self, first: Layer, second: Layer, shortcut: nn.Module | None = None) -> None:
        self.first, self.second, self.shortcut = first, second, shortcut

    def forward(self, x: Tensor) -> Tensor:
        s = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.second(self.first(x)) + s)


def _reduction(factory, before, channels, projects, rng):
    """The shortcut around a convolution with stride 2."""
    if projects:
        pool, stride = ([], 2) if factory.is_float else ([nn.AvgPool2d(2)], 1)
        conv = nn.Conv2d(before, channels, 1, stride, bias=False, rng=rng)
        return nn.Sequential(*pool, conv, nn.BatchNorm2d(channels))
    pool = nn.AvgPool2d(1, 2) if factory.is_float else nn.AvgPool2d(2)
    return nn.Sequential(pool, ZeroChannels(before, channels))


def _stages(factory, stages, channels, width, projects, rng):
    """Build the blocks of all stages; also return the number of output channels."""
    layers = []
    for number, (outputs, count) in enumerate(stages):
        for block in range(count):
            before, channels = channels, scaled(outputs, width)
            stride = 2 if number and not block else 1
            shortcut = None
            if stride == 2:
                shortcut = _reduction(factory, before, channels, projects, rng)
            convs = [
                factory.conv(before, channels, 3, stride, rng=rng),
                factory.conv(channels, channels, 3, rng=rng),
            ]
            norms = [nn.BatchNorm2d(channels) for _ in convs]
            if factory.is_float:
                first = Layer(convs[0], norms[0], nn.ReLU())
                layers.append(BasicBlock(first, Layer(convs[1], norms[1]), shortcut))
                continue
            for conv, norm, around in zip(convs, norms, (shortcut, None), strict=True):
                around = around or nn.Identity()
                layers.append(Layer(conv, norm, factory.activation(channels), around))
    return layers, channels


def resnet18(
    width: float = 1.0,
    input_size: int = 224,
    num_classes: int = 1000,
    method: str = "float",
    *,
    stem_stride: int | None = None,
    in_channels: int = 3,
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """Build ResNet-18.

    Parameters
    ----------
    width : float
        Factor of all channel counts.
    input_size : int
        Height and width of the images: a multiple of 32, or of 8 with a stem of stride 1.
    num_classes : int
    method : 'float', 'birealnet', 'reactnet' or 'adabin'
    stem_stride : 1 or 2, optional
        2 (default for images above 64 pixels): a 7×7 convolution and a max-pool; 1: a 3×3
        convolution without max-pool.
    in_channels : int
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Returns
    -------
    Sequential
        (N, in_channels, input_size, input_size) images -> (N, num_classes) logits.
    """
    factory = make_method("resnet18", method, known=METHODS)
    stem_stride = stride_for("resnet18", "stem_stride", stem_stride, input_size, 64)
    is_large = stem_stride == 2
    check_arguments("resnet18", width, input_size, 32 if is_large else 8)
    rng = default_generator() if rng is None else rng
    channels = scaled(64, width)
    kernel_size = 7 if is_large else 3
    layers = [stem(factory, in_channels, channels, stem_stride, kernel_size=kernel_size, rng=rng)]
    if is_large:
        layers.append(nn.MaxPool2d(3, 2, 1))
    stages, channels = _stages(factory, RESNET18, channels, width, True, rng)
    return nn.Sequential(*layers, *stages, *classifier(channels, num_classes, rng))


def resnet20(
    width: float = 1.0,
    input_size: int = 32,
    num_classes: int = 10,
    method: str = "float",
    *,
    in_channels: int = 3,
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """Build ResNet-20, for small images.

    Parameters
    ----------
    width, num_classes, method, in_channels, rng
        As in `resnet18`.
    input_size : int
        Height and width of the images: a multiple of 4.

    Returns
    -------
    Sequential
        (N, in_channels, input_size, input_size) images -> (N, num_classes) logits.
    """
    factory = make_method("resnet20", method, known=METHODS)
    check_arguments("resnet20", width, input_size, 4)
    rng = default_generator() if rng is None else rng
    channels = scaled(16, width)
    stages, last = _stages(factory, RESNET20, channels, width, False, rng)
    first = stem(factory, in_channels, channels, 1, rng=rng)
    return nn.Sequential(first, *stages, *classifier(last, num_classes, rng))
