"""Networks as boxes and arrows: autograd graphs and architectures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tinybnn import quantizers
from tinybnn.autograd import Function, Tensor, as_array
from tinybnn.plots.boxes import Box, connect, draw, laid_out
from tinybnn.plots.canvas import MINUS, PLUS, picture, tint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tinybnn.plots.canvas import Place

_MOST_BOXES = 500
_NODES = {  # fill, edge, legend text
    "operation": ("white", MINUS, "operation"),
    "leaf": (tint(PLUS, 0.25), PLUS, "leaf that requires grad"),
    "constant": ("0.93", "0.6", "constant"),
}


@picture(size=None)
def graph(
    tensor: Tensor,
    names: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] = (),
    *,
    ax: Place = None,
) -> Figure:
    """Draw the autograd graph of a Tensor, from the leaves at the top down to the Tensor.

    A box is an operation, with the shapes of its inputs and output, or a leaf with its shape.
    Arrows follow the data; `backward` goes the other way. Numbers are omitted.

    Parameters
    ----------
    tensor : Tensor
    names : dict or sequence of (name, Tensor)
        Names of leaves, such as ``model.named_parameters()``.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    RuntimeError
        If `backward` has freed the graph: draw before it, or use ``retain_graph=True``.
    ValueError
        If the graph has more than 500 nodes.
    """
    return draw(laid_out(_boxes(tensor, dict(names))), ax, _NODES).figure


def _boxes(tensor, names):
    """Make a box for each node, the last operation first, each before its sources."""
    name_of = {id(as_array(t)): name for name, t in names.items()}
    root = tensor.function or tensor
    boxes, order = {}, []
    stack = [(id(root), root, tensor.shape, False)]  # depth-first; recursion would overflow
    while stack:
        key, node, shape, is_complete = stack.pop()
        if is_complete:
            for source_key, *_ in _sources(node):
                connect(boxes[source_key], boxes[key])
            order.append(boxes[key])
        elif key not in boxes:
            if len(boxes) == _MOST_BOXES:
                raise ValueError(f"graph: more than {_MOST_BOXES} nodes make no picture")
            if isinstance(node, Function):
                boxes[key] = _operation(node, shape)
            else:
                kind = "leaf" if isinstance(node, Tensor) and node.requires_grad else "constant"
                boxes[key] = Box(kind, (name_of.get(id(as_array(node)), kind), str(shape)))
            stack.append((key, node, shape, True))
            stack.extend((*source, False) for source in _sources(node))
    return order[::-1]


def _sources(node):
    """Yield (key, node, shape) of each input of an operation, except numbers."""
    if not isinstance(node, Function):
        return
    if node.edges is None:
        raise RuntimeError(
            f"graph: the graph behind {node} was freed by backward; draw it before backward, or "
            "pass retain_graph=True there"
        )
    for i, (edge, shape) in enumerate(zip(node.edges, node.shapes, strict=True)):
        saved = node._inputs[i]
        if edge is not None:
            yield id(edge), edge, shape
        elif shape != ():  # a constant, recognised again if its values were saved
            yield (id(node), i) if saved is None else id(as_array(saved)), saved, shape


def _operation(function, shape):
    """Make the box of an operation with an output of `shape`."""
    inputs = [s for s in function.shapes if s != ()]
    text = str(shape)
    if any(s != shape for s in inputs):
        text = ", ".join(map(str, inputs)) + " → " + text
    name = str(function)
    if isinstance(function, quantizers.Quantize):  # under its own name, with or without its scale
        name = type(getattr(function.quantizer, "scaled", function.quantizer)).__name__
    return Box("operation", (name, text))
