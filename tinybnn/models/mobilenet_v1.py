"""MobileNet V1: depth-wise separable convolutions, float and binary.

    layer                                   output (224)    channels
    conv 3×3, stride 2 (real)               112×112         32
    separable                               112×112         64
    separable, stride 2                     56×56           128
    separable                               56×56           128
    separable, stride 2                     28×28           256
    separable                               28×28           256
    separable, stride 2                     14×14           512
    5 × separable                           14×14           512
    separable, stride 2                     7×7             1024
    separable                               7×7             1024
    mean, dense (real)                                      num_classes

Separable: a 3×3 layer with the stride, which keeps the number of channels, and a 1×1 layer, which
changes it. Howard et al. 2017, Table 1. The binary forms are those of ReActNet (Liu et al. 2020,
section 4.1), AdaBin (Tu et al. 2022) and BD-Net; `models.blocks` describes them. Where the number
of channels doubles, ReActNet concatenates two 1×1 convolutions, each with the shortcut added; here
it is one convolution with twice as many filters and a replicated shortcut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinybnn import nn
from tinybnn.autograd import default_generator
from tinybnn.models.blocks import check_arguments, classifier, make_method, scaled, stem, stride_for

if TYPE_CHECKING:
    import numpy as np

STEM = 32

# (output channels, stride) of the separable convolutions.
SEPARABLE = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1),
    (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


def mobilenet_v1(
    width: float = 1.0,
    input_size: int = 224,
    num_classes: int = 1000,
    method: str = "float",
    *,
    base: str = "reactnet",
    broadcast_residual: bool = True,
    dual: bool = True,
    pre_bn: bool = True,
    real_pre_bn: bool = False,
    stem_stride: int | None = None,
    round_nearest: int = 1,
    in_channels: int = 3,
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """Build MobileNet V1.

    Parameters
    ----------
    width : float
        Factor of all channel counts.
    input_size : int
        Height and width of the images: a multiple of 16 times the stem's stride.
    num_classes : int
    method : 'float', 'reactnet', 'adabin', 'bdnet-a' or 'bdnet-b'
        'bdnet-a' makes every 3×3 layer a binary depth-wise convolution; 'bdnet-b' keeps those with
        a stride real.
    base : 'reactnet' or 'adabin'
        The method that BD-Net is built on; ignored by the others.
    broadcast_residual : bool
        Binary methods only: add shortcuts around layers that change the number of channels.
    dual, pre_bn : bool
        BD-Net only, for ablations: the 1.58-bit convolution; the shortcut before the batch norm.
    real_pre_bn : bool
        BD-Net-B only: that shortcut in its real depth-wise layers, too.
    stem_stride : 1 or 2, optional
        Default: 2 for images above 96 pixels (BD-Net, Table 2), else 1.
    round_nearest : int
        Round channel counts to a multiple of this number, at least to itself.
    in_channels : int
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Returns
    -------
    Sequential
        (N, in_channels, input_size, input_size) images -> (N, num_classes) logits.
    """
    factory = make_method(
        "mobilenet_v1", method, base, broadcast_residual, dual, pre_bn, real_pre_bn
    )
    stem_stride = stride_for("mobilenet_v1", "stem_stride", stem_stride, input_size, 96)
    check_arguments("mobilenet_v1", width, input_size, 16 * stem_stride)
    rng = default_generator() if rng is None else rng
    channels = scaled(STEM, width, round_nearest)
    layers = [stem(factory, in_channels, channels, stem_stride, rng=rng)]
    for outputs, stride in SEPARABLE:
        before, channels = channels, scaled(outputs, width, round_nearest)
        layers += [
            factory.spatial(before, 3, stride, factory.activation(before), rng=rng),
            factory.pointwise(before, channels, activation=factory.activation(channels), rng=rng),
        ]
    return nn.Sequential(*layers, *classifier(channels, num_classes, rng))
