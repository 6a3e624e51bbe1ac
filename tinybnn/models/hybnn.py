"""HyBNN: a frozen float encoder with binary codes, and binary networks on these codes.

In a Hybrid Binary Neural Network the encoder of a `BinaryVAE` is trained once, without labels, and
frozen. Each task has its own small binary head, whose only input is the packed code. `BinaryCNN` is
the paper's baseline: one binary network on binarized pixels, of the size of encoder and head.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tinybnn import nn
from tinybnn.autograd import default_generator
from tinybnn.models.binary_vae import CHANNELS, BinaryVAE, image_sizes
from tinybnn.models.blocks import dense_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from tinybnn.autograd import Tensor
    from tinybnn.quantizers import Quantizer


def binary_dense(
    in_features: int,
    widths: Sequence[int],
    quantizer: str | Quantizer,
    rng: np.random.Generator | None,
    norm: str = "batch",
) -> list[nn.Module]:
    """Build dense layers, each a sign, a BinaryLinear and a norm: the list of modules."""
    layers = []
    for i, width in enumerate(widths, 1):
        layers.append(nn.BinaryLinear(in_features, width, input_quantizer=quantizer, rng=rng))
        layers.append(dense_norm("BinaryMLP", norm, in_features, width, is_last=i == len(widths)))
        in_features = width
    return layers


class BinaryMLP(nn.Module):
    """The task network: codes -> class scores, with signs for all weights and layer inputs.

        layer                           weights
        dense 200 -> 128, batch norm    25,600 (binary)
        sign
        dense 128 -> 2, batch norm      256 (binary)

    The last layer is binary too. Its scores are integers from -128 to 128, so far apart that
    softmax would saturate and its gradient vanish; the batch norm behind it rescales them to unit
    variance. It costs two floats a class and cannot be folded into thresholds, since no sign
    follows: it is the only float computation of the packed network.

    Parameters
    ----------
    in_features : int
        Number of bits of a code.
    hidden : int or sequence of int
        Width of the hidden layer, or of several.
    num_classes : int
    norm : 'batch', 'layer' or 'none'
        As for `mlp`. With 'none' the scores are divided by sqrt(128): one float a class.
    quantizer : Quantizer or name
        For each layer's input; weights use ste_sign.
    rng : numpy.random.Generator, optional
        Source of the initial weights.
    """

    layers: nn.Sequential

    def __init__(
        self,
        in_features: int = 200,
        hidden: int | Sequence[int] = 128,
        num_classes: int = 2,
        *,
        norm: str = "batch",
        quantizer: str | Quantizer = "ste_sign",
        rng: np.random.Generator | None = None,
    ) -> None:
        rng = default_generator() if rng is None else rng
        hidden = (hidden,) if np.ndim(hidden) == 0 else tuple(hidden)
        layers = binary_dense(in_features, (*hidden, num_classes), quantizer, rng, norm)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features) -> (N, num_classes)."""
        return self.layers(x)


class BinaryCNN(nn.Module):
    """The baseline: binarized pixels, three binary convolutions, three binary dense layers.

        layer (28×28)                        output      weights (all binary)
        sign(x - threshold)                  28×28
        conv 3×3 stride 2, 1 -> 32           14×14       288
        conv 3×3 stride 2, 32 -> 64          7×7         18,432
        conv 3×3 stride 2, 64 -> 128         4×4         73,728
        dense 2048 -> 200                    200         409,600
        dense 200 -> 128                     128         25,600
        dense 128 -> 2                       2           256

    with a batch norm behind each layer and a sign in front: the shapes of HyBNN's encoder and head
    together. (The paper calls the first dense layer regular; here it is binary as well.)

    Parameters
    ----------
    image_shape : (C, H, W)
    num_classes : int
    threshold : float or array that broadcasts to (C, H, W)
        Subtracted from the pixels before the sign. For pixels from 0 to 1:

        - 0 is the paper's construction, sign(x). Since sign(0) = +1, every image becomes all +1 and
          the network a constant: its accuracy is the frequency of the most common class. This is a
          defect of the threshold, not of binary inputs.
        - 0.5, or the mean of each pixel over the training images, avoids it.
    features, hidden : int
        Widths of the dense layers.
    quantizer : Quantizer or name
        For each layer's input; weights use ste_sign.
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    threshold : (1, C or 1, H or 1, W or 1) float32 buffer
    """

    threshold: NDArray[np.float32]
    layers: nn.Sequential

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int = 2,
        threshold: ArrayLike = 0.5,
        features: int = 200,
        hidden: int = 128,
        *,
        quantizer: str | Quantizer = "ste_sign",
        rng: np.random.Generator | None = None,
    ) -> None:
        rng = default_generator() if rng is None else rng
        threshold = np.asarray(threshold, np.float32)
        if len(image_shape) != 3 or not _broadcasts(threshold.shape, image_shape):
            raise ValueError(
                "BinaryCNN: expects image_shape (C, H, W) and a threshold that broadcasts to it, "
                f"got {tuple(image_shape)} and a threshold of shape {threshold.shape}"
            )
        self.register_buffer(
            "threshold", threshold.reshape((1,) * (4 - threshold.ndim) + threshold.shape)
        )
        layers, channels = [], image_shape[0]
        for outputs in CHANNELS:
            layers += [
                nn.BinaryConv2d(
                    channels, outputs, 3, stride=2, padding=1, input_quantizer=quantizer, rng=rng
                ),
                nn.BatchNorm2d(outputs),
            ]
            channels = outputs
        in_features = channels * math.prod(image_sizes(image_shape)[-1])
        dense = binary_dense(in_features, (features, hidden, num_classes), quantizer, rng)
        self.layers = nn.Sequential(*layers, nn.Flatten(), *dense)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, num_classes)."""
        return self.layers(x - self.threshold)


def _broadcasts(shape, target):
    try:
        return np.broadcast_shapes(shape, target) == tuple(target)
    except ValueError:
        return False


class HyBNN(nn.Module):
    """Image -> code -> class scores: an encoder, frozen here, and a head that is trained.

    Training the whole model recomputes the code of each image in every epoch. It is faster to
    encode once and to train the head alone (`BinaryVAE.encode_packed`, `save_codes`), and to
    combine both afterwards.

    ``deploy.compile(HyBNN(encoder, head), image_shape)`` is a program from image to scores, with
    codes as bits throughout. ``deploy.compile(head, (bits,)).predict_packed(words)`` starts from
    stored codes.

    Parameters
    ----------
    encoder : Module
        Images (N, C, H, W) -> (N, bits) of ±1, such as ``vae.encoder``; `Module.freeze` is applied.
    head : Module
        (N, bits) -> (N, classes), such as a `BinaryMLP`.
    """

    encoder: nn.Module
    head: nn.Module

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        if isinstance(encoder, BinaryVAE):
            raise ValueError("HyBNN: a BinaryVAE returns images; pass vae.encoder as the encoder")
        self.encoder = encoder.freeze()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        return self.head(self.encoder(x))
