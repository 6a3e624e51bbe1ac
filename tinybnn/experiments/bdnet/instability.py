"""Variances and gradients of binary depth-wise layers, which the paper holds to be unstable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinybnn import analysis, datasets, nn
from tinybnn.datasets import Dataset
from tinybnn.models.blocks import Layer
from tinybnn.typing import Array


def layer_statistics(
    model: nn.Module, batches: Sequence[tuple[Array, Array]]
) -> list[dict[str, Any]]:
    """Measure variances and gradients of the k×k layers after the first one.

    `analysis.batch_statistics` explains their role in the paper (Eq. 1).

    Parameters
    ----------
    model : Module
        Consists of `models.blocks.Layer`s. It is not changed, nor are its running statistics.
    batches : sequence of (x, labels)
        At least two: (B, C, H, W) float32 and (B,) int.

    Returns
    -------
    list of dict
        For each layer, in order: ``layer`` (its path), ``channels``, ``groups``, ``binary``;
        ``variance`` of the batch norm's input, and ``factor``, |α|: each minimum, median and
        maximum over the channels, averaged over the batches; ``gradient``, the mean norm of the
        gradient of its (latent) weights; ``agreement`` of the gradients of different batches, see
        `analysis.agreement`.
    """
    layers = _spatial_layers(model)
    groups = {path: [c.weight for c in _convolutions(layer)] for path, layer in layers.items()}
    paths = {id(module): path for path, module in model.named_modules()}
    statistics = analysis.batch_statistics(model, batches, groups=groups)
    rows = []
    for path, layer in layers.items():
        conv, norm = _convolutions(layer)[0], statistics.norms[paths[id(layer.norm)]]
        row = {
            "layer": path, "channels": conv.out_channels, "groups": conv.groups,
            "binary": isinstance(conv, nn.BinaryConv2d | nn.AdaBinConv2d),
        }  # fmt: skip
        for name in ("variance", "factor"):
            mean = norm[name].mean(0)
            row[name] = [float(f(mean)) for f in (np.min, np.median, np.max)]
        row["gradient"] = statistics.gradients[path]["norm"]
        row["agreement"] = statistics.gradients[path]["agreement"]
        rows.append(row)
    return rows


def _spatial_layers(model):
    """Path -> layer, for the layers with more than one tap except the first, which is real."""
    spatial = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Layer) and _convolutions(module)[0].kernel_size != (1, 1)
    }
    return dict([*spatial.items()][1:])


def _convolutions(layer):
    """The convolutions of a layer: one, or the branches of a dual one."""
    conv = layer.conv
    if isinstance(conv, nn.DualBinaryConv2d | nn.DualAdaBinConv2d):
        return conv.convolutions()
    return [conv[1] if isinstance(conv, nn.Sequential) else conv]  # after its sign


def first_batches(images: Dataset, count: int = 8, size: int = 64) -> list[tuple[Array, Array]]:
    """Return the first images of a Dataset in batches, for `layer_statistics`: at least two.

    Parameters
    ----------
    images : Dataset
    count, size : int
        Maximum number of batches, and of images in a batch.

    Returns
    -------
    list of (x, labels)
        (B, C, H, W) float32 and (B,) int64.
    """
    size = min(size, len(images) // 2)
    return list(datasets.DataLoader(images[: count * size], size))
