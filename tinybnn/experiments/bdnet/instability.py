"""What makes the training of binary depth-wise layers unstable: their variances and gradients."""

from __future__ import annotations

import numpy as np

from tinybnn import analysis, datasets, nn
from tinybnn.models.blocks import Layer


def layer_statistics(model, batches):
    """Variances and gradients of the k×k layers behind the first one.

    See `analysis.batch_statistics` for what the paper blames (its Eq. 1).

    Parameters
    ----------
    model : Module
        Of `models.blocks.Layer`s. It is left as it was, its running statistics included.
    batches : sequence of (x, labels)
        At least two.

    Returns
    -------
    list of dict
        For each layer, in order: ``layer`` (its path), ``channels``, ``groups``, ``binary``;
        ``variance``, of what comes into the batch norm, and ``factor``, |α|: each minimum, median
        and maximum over the channels, in the mean of the batches; ``gradient``, the mean norm of
        the gradient of its (latent) weights; ``agreement`` of the gradients of different batches,
        see `analysis.agreement`.
    """
    layers = _spatial_layers(model)
    groups = {path: [c.weight for c in _convolutions(layer)] for path, layer in layers.items()}
    paths = {id(module): path for path, module in model.named_modules()}
    found = analysis.batch_statistics(model, batches, groups=groups)
    rows = []
    for path, layer in layers.items():
        conv, norm = _convolutions(layer)[0], found.norms[paths[id(layer.norm)]]
        row = {
            "layer": path, "channels": conv.out_channels, "groups": conv.groups,
            "binary": isinstance(conv, nn.BinaryConv2d | nn.AdaBinConv2d),
        }  # fmt: skip
        for name in ("variance", "factor"):
            mean = norm[name].mean(0)
            row[name] = [float(f(mean)) for f in (np.min, np.median, np.max)]
        row["gradient"] = found.gradients[path]["norm"]
        row["agreement"] = found.gradients[path]["agreement"]
        rows.append(row)
    return rows


def _spatial_layers(model):
    """Path -> layer, of the layers with more than one tap; the first, which is real, left out."""
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Layer) and _convolutions(module)[0].kernel_size != (1, 1)
    }
    return dict([*found.items()][1:])


def _convolutions(layer):
    """The convolutions of a layer: one, or the branches of a dual one."""
    conv = layer.conv
    if isinstance(conv, nn.DualBinaryConv2d | nn.DualAdaBinConv2d):
        return conv.convolutions()
    return [conv[1] if isinstance(conv, nn.Sequential) else conv]  # behind its sign


def first_batches(images, count=8, size=64):
    """The first images of a Dataset in batches, for `layer_statistics`: at least two.

    Parameters
    ----------
    images : Dataset
    count, size : int
        At most so many batches of so many images.

    Returns
    -------
    list of (x, labels)
    """
    size = min(size, len(images) // 2)
    return list(datasets.DataLoader(images[: count * size], size))
