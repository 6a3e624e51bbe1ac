"""VGG-small: the usual network for comparing binary convolutions on CIFAR-10.

    layer                                output        weights
    conv 3×3, 3 -> 128, batch norm       32×32         3,456 (real)
    conv 3×3, 128 -> 128                 32×32         147,456
    max-pool 2×2, batch norm             16×16
    conv 3×3, 128 -> 256, batch norm     16×16         294,912
    conv 3×3, 256 -> 256                 16×16         589,824
    max-pool 2×2, batch norm             8×8
    conv 3×3, 256 -> 512, batch norm     8×8           1,179,648
    conv 3×3, 512 -> 512                 8×8           2,359,296
    max-pool 2×2, batch norm, sign       4×4
    dense 8192 -> 10                     10            81,920 (real)

The convolutional part of BinaryNet's network for CIFAR-10 (Courbariaux et al. 2016) with one dense
layer, as in LQ-Nets (Zhang et al. 2018) and later work. Pooling precedes the batch norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinybnn import nn
from tinybnn.autograd import default_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from tinybnn.quantizers import Quantizer

# Binary convolutions: (output channels, whether a max-pool follows).
CONVOLUTIONS = ((128, True), (256, False), (256, True), (512, False), (512, True))


def vgg_small(
    input_shape: Sequence[int] = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    quantizer: str | Quantizer = "ste_sign",
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """Build VGG-small.

    Parameters
    ----------
    input_shape : (C, H, W)
        H and W multiples of 8.
    num_classes : int
    width : float
        Factor of all channel counts.
    quantizer : Quantizer or name
        For activations; weights use ste_sign.
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Returns
    -------
    Sequential
        (N, C, H, W) images -> (N, num_classes) logits.
    """
    in_channels, height, image_width = input_shape
    if height % 8 or image_width % 8:
        raise ValueError(
            f"vgg_small: height and width must be multiples of 8, got {tuple(input_shape[1:])}"
        )
    rng = default_generator() if rng is None else rng
    channels = max(1, round(128 * width))
    layers = [
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False, rng=rng),
        nn.BatchNorm2d(channels),
    ]
    for outputs, pooled in CONVOLUTIONS:
        in_channels, channels = channels, max(1, round(outputs * width))
        layers.append(
            nn.BinaryConv2d(in_channels, channels, 3, padding=1, input_quantizer=quantizer, rng=rng)
        )
        if pooled:
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.BatchNorm2d(channels))
    features = channels * (height // 8) * (image_width // 8)
    layers += [nn.Quantize(quantizer), nn.Flatten(), nn.Linear(features, num_classes, rng=rng)]
    return nn.Sequential(*layers)
