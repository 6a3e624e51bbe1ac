"""What makes the training of binary depth-wise layers unstable: their variances and gradients."""

from __future__ import annotations

import numpy as np

from tinybnn import datasets, nn
from tinybnn import functional as F
from tinybnn.autograd import Tensor, trace
from tinybnn.models.blocks import Layer


def layer_statistics(model, batches):
    """Variances and gradients of the k×k layers behind the first one.

    The paper blames small variances of the depth-wise sums: the batch norm's factor
    α = γ / sqrt(variance + ε) multiplies what comes back as gradient (its Eq. 1), which then
    fluctuates from batch to batch.

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
        the gradient of its (latent) weights; ``agreement`` of the gradients g, the mean product of
        two different batches over the mean |g|²: 1 where all are equal, 0 where they have nothing
        in common.
    """
    layers = _spatial_layers(model)
    seen = {path: {"variance": [], "factor": [], "gradient": []} for path in layers}
    state = {name: array.copy() for name, array in model.state_dict().items()}
    norms = {id(layer.norm): path for path, layer in layers.items()}
    with model.in_mode(training=True):
        for x, labels in batches:
            model.zero_grad()
            with trace() as tape:
                loss = F.cross_entropy(model(Tensor(x)), labels)
            for module, inputs, _ in tape.modules:
                if id(module) in norms:
                    variance = inputs[0].data.var((0, 2, 3), dtype=np.float64)  # (C,)
                    found = seen[norms[id(module)]]
                    found["variance"].append(variance)
                    found["factor"].append(
                        np.abs(module.weight.data) / np.sqrt(variance + module.eps)
                    )
            del tape
            loss.backward()
            for path, layer in layers.items():
                grads = [conv.weight.grad.data.ravel() for conv in _convolutions(layer)]
                seen[path]["gradient"].append(np.concatenate(grads).astype(np.float64))
    model.zero_grad()
    model.load_state_dict(state)
    rows = []
    for path, layer in layers.items():
        conv, gradients = _convolutions(layer)[0], np.array(seen[path]["gradient"])  # (batches, n)
        squares = (gradients**2).sum(1)
        row = {
            "layer": path, "channels": conv.out_channels, "groups": conv.groups,
            "binary": isinstance(conv, nn.BinaryConv2d | nn.AdaBinConv2d),
        }  # fmt: skip
        for name in ("variance", "factor"):
            mean = np.mean(seen[path][name], axis=0)
            row[name] = [float(f(mean)) for f in (np.min, np.median, np.max)]
        row["gradient"] = float(np.sqrt(squares).mean())
        pairs = len(squares) * (len(squares) - 1)
        products = float((gradients.sum(0) ** 2).sum() - squares.sum()) / pairs
        row["agreement"] = products / float(squares.mean()) if squares.any() else 0.0
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
