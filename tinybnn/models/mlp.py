"""A binary multi-layer perceptron: dense layers with signs for inputs and weights.

hidden=(256, 256, 256) gives the shape of FINN's SFC, (1024, 1024, 1024) that of LFC (Umuroglu et
al. 2017).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinybnn import nn
from tinybnn.autograd import default_generator
from tinybnn.models.blocks import dense_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from tinybnn.quantizers import Quantizer


def mlp(
    in_features: int,
    hidden: Sequence[int] = (256, 256, 256),
    num_classes: int = 10,
    dropout: float = 0.0,
    quantizer: str | Quantizer = "approx_sign",
    rng: np.random.Generator | None = None,
    *,
    norm: str = "batch",
) -> nn.Sequential:
    """Build a binary MLP: each layer is the sign of its input, a BinaryLinear and a norm.

    Parameters
    ----------
    in_features : int
        Number of values of a sample (784 for a 28×28 image); images are flattened.
    hidden : sequence of int
        Widths of the hidden layers.
    num_classes : int
    dropout : float
        Probability after each hidden norm; a dropped value is 0, whose sign is +1.
    quantizer : Quantizer or name
        For activations and the input; weights use ste_sign.
    rng : numpy.random.Generator, optional
        Source of the initial weights and of dropout.
    norm : 'batch', 'layer' or 'none'
        What follows each BinaryLinear: a batch norm; a layer norm, but for the last one; or, with
        'none' and behind the last one of 'layer', `nn.FanInScale`, which has no statistics.

    Returns
    -------
    Sequential
        (N, ...) -> (N, num_classes) logits.
    """
    rng = default_generator() if rng is None else rng
    layers, width = [nn.Flatten()], in_features
    for features in hidden:
        layers += [
            nn.BinaryLinear(width, features, input_quantizer=quantizer, rng=rng),
            dense_norm("mlp", norm, width, features),
        ]
        if dropout:
            layers.append(nn.Dropout(dropout, rng=rng))
        width = features
    layers += [
        nn.BinaryLinear(width, num_classes, input_quantizer=quantizer, rng=rng),
        dense_norm("mlp", norm, width, num_classes, is_last=True),
    ]
    return nn.Sequential(*layers)
