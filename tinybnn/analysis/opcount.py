"""Operation counts: the multiply-accumulates of a network, layer by layer.

The measure of binary networks is OPs = BOPs / 64 + FLOPs, in multiply-accumulates: a word of 64
signs counts as much as one product of floats (Bi-Real Net, Liu et al. 2018; BD-Net, Preliminaries).
It says nothing about time: `tinybnn bench models` measures that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tinybnn import functional as F
from tinybnn.autograd import Reshape, Tensor, no_grad, trace
from tinybnn.nn import Module
from tinybnn.quantizers import Quantize

if TYPE_CHECKING:
    from tinybnn.autograd import Tape
    from tinybnn.nn.module import Cost
    from tinybnn.typing import Shape


@dataclass(frozen=True)
class LayerCount:
    """The cost of a layer for one sample.

    Attributes
    ----------
    name : str
        Path of the layer in the network.
    layer : Module
    input_shape, output_shape : tuple of int
        Shapes of one sample.
    bops, flops : int
        Multiply-accumulates between signs, and those with a float on either side.
    weight_bits : int
        Bits of parameters and statistics; 0 where a layer runs again.
    """

    name: str
    layer: Module
    input_shape: Shape
    output_shape: Shape
    bops: int
    flops: int
    weight_bits: int


@dataclass(frozen=True)
class OperationCount:
    """The layers of a network in execution order; prints as a table.

    Attributes
    ----------
    layers : tuple of LayerCount
        The layers that have weights.
    """

    layers: tuple[LayerCount, ...]

    @property
    def bops(self) -> int:
        """Multiply-accumulates between signs."""
        return sum(layer.bops for layer in self.layers)

    @property
    def flops(self) -> int:
        """Multiply-accumulates with a float on either side."""
        return sum(layer.flops for layer in self.layers)

    @property
    def ops(self) -> float:
        """BOPs / 64 + FLOPs."""
        return self.bops / 64 + self.flops

    @property
    def weight_bits(self) -> int:
        """Bits of all parameters and statistics."""
        return sum(layer.weight_bits for layer in self.layers)

    def __str__(self) -> str:
        lines = [_LINE.format("layer", "output", "BOPs", "FLOPs", "bits")]
        for row in self.layers:
            name = f"{row.name} ({type(row.layer).__name__})"
            shape = "×".join(map(str, row.output_shape))
            lines.append(_LINE.format(name, shape, *_cells(row)))
        lines.append(_LINE.format("total", "", *_cells(self)))
        lines.append(f"OPs = BOPs / 64 + FLOPs: {self.ops:,.0f}")
        return "\n".join(lines)


_LINE = "{:<46}{:<14}{:>16}{:>14}{:>14}"


def _cells(row):
    return f"{row.bops:,}", f"{row.flops:,}", f"{row.weight_bits:,}"


def count_operations(model: Module, input_shape: Sequence[int]) -> OperationCount:
    """Count the operations of a network for one sample.

    The network runs on an empty batch, which has the shapes of a real run and computes nothing; if
    its forward method does not accept that, on one sample of zeros.

    Parameters
    ----------
    model : Module
    input_shape : sequence of int
        Shape of one sample, without the batch.

    Returns
    -------
    OperationCount

    Examples
    --------
    >>> from tinybnn import models
    >>> network = models.mobilenet_v1(0.25, 32, 10, "bdnet-a")
    >>> count = count_operations(network, (3, 32, 32))
    >>> count.bops, count.flops
    (3462144, 223744)
    """
    input_shape = tuple(int(n) for n in input_shape)
    with model.in_mode(training=False):
        try:
            tape = _run(model, (0, *input_shape))
        except ValueError:  # such as that of reshape(len(x), -1)
            tape = _run(model, (1, *input_shape))
    paths = {id(module): path or "model" for path, module in model.named_modules()}
    layers, counted = [], set()
    for module, inputs, output, cost in costs(tape):
        if not module.state_dict():
            continue
        again = id(module) in counted  # a shared layer: its parameters count once
        counted.add(id(module))
        layers.append(
            LayerCount(
                paths[id(module)], module, inputs[0].shape[1:], output.shape[1:], cost.bops,
                cost.flops, 0 if again else cost.weight_bits,
            )
        )  # fmt: skip
    return OperationCount(tuple(layers))


def _run(model, shape):
    with no_grad(), trace() as tape:
        model(Tensor(np.zeros(shape, np.float32)))
    return tape


def costs(tape: Tape) -> Iterator[tuple[Module, tuple[Tensor, ...], Tensor, Cost]]:
    """Yield the layers that ran in a `tensor.trace`, with their costs.

    A binary layer without input quantizer cannot know whether its inputs are signs; the trace does,
    and products of signs count as such.

    Parameters
    ----------
    tape : Tape

    Yields
    ------
    module, inputs, output, cost : Module, tuple of Tensor, Tensor, Cost
    """
    signs = set()
    for call in tape:
        function = type(call.function)
        if function is Quantize:
            quantizer = call.options["quantizer"]
            gives_signs = quantizer.values == (-1.0, 1.0) and quantizer.levels() is quantizer
        else:
            gives_signs = function in (F.MaxPool2d, Reshape) and id(call.inputs[0]) in signs
        if gives_signs:
            signs.add(id(call.output))
    for module, inputs, output in tape.modules:
        if module.children():
            continue
        cost = module.cost(inputs[0].shape[1:])
        quantizer = getattr(module, "weight_quantizer", None)
        if id(inputs[0]) in signs and quantizer is not None and quantizer.values is not None:
            cost = replace(cost, bops=cost.bops + cost.flops, flops=0)
        yield module, inputs, output, cost
