"""A small binary convolutional network: three convolutions and two dense layers.

The shape is that of larq's introductory example for MNIST. With the defaults and 28×28 images it
has 90,744 binary weights and 460 float parameters.

    layer                         output (28×28)     weights
    conv 3×3, 1 -> 32             26×26              288 (binary, on real pixels)
    max-pool 2×2, batch norm      13×13
    conv 3×3, 32 -> 64            11×11              18,432
    max-pool 2×2, batch norm      5×5
    conv 3×3, 64 -> 64            3×3                36,864
    batch norm, flatten           576
    dense 576 -> 60, batch norm   60                 34,560
    dense 60 -> 10, batch norm    10                 600
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinybnn import nn
from tinybnn.autograd import default_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from tinybnn.quantizers import Quantizer


def cnn(
    input_shape: Sequence[int],
    num_classes: int = 10,
    channels: tuple[int, int, int] = (32, 64, 64),
    features: int = 60,
    padding: int = 0,
    quantizer: str | Quantizer = "approx_sign",
    rng: np.random.Generator | None = None,
) -> nn.Sequential:
    """Build a small binary CNN.

    Parameters
    ----------
    input_shape : (C, H, W)
    num_classes : int
    channels : three ints
        Output channels of the convolutions.
    features : int
        Width of the dense layer.
    padding : int
        Zeros around each convolution's input; 1 suits images below 22×22.
    quantizer : Quantizer or name
        For activations; weights use ste_sign.
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Returns
    -------
    Sequential
        (N, C, H, W) images -> (N, num_classes) logits.
    """
    if len(input_shape) != 3:
        raise ValueError(f"cnn: input_shape must be (C, H, W), got {tuple(input_shape)}")
    rng = default_generator() if rng is None else rng
    size = list(input_shape[1:])
    for pool in (2, 2, 1):
        size = [(n + 2 * padding - 2) // pool for n in size]
    if min(size) < 1:
        raise ValueError(
            f"cnn: images of {tuple(input_shape[1:])} are too small for padding={padding}"
        )
    first, second, third = channels
    binary = {"input_quantizer": quantizer, "rng": rng}
    return nn.Sequential(
        nn.BinaryConv2d(input_shape[0], first, 3, padding=padding, input_quantizer=None, rng=rng),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(first),
        nn.BinaryConv2d(first, second, 3, padding=padding, **binary),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(second),
        nn.BinaryConv2d(second, third, 3, padding=padding, **binary),
        nn.BatchNorm2d(third),
        nn.Flatten(),
        nn.BinaryLinear(third * size[0] * size[1], features, **binary),
        nn.BatchNorm1d(features),
        nn.BinaryLinear(features, num_classes, **binary),
        nn.BatchNorm1d(num_classes),
    )
