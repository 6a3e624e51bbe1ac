"""The backward pass: `backward` adds gradients to ``.grad``, `grad` returns them.

Both walk the graph that `autograd.engine` recorded once, from the outputs to the leaves, in an
order in which each node has received all of its gradient before it passes any on.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tinybnn.autograd.engine import Function, Variable, no_grad, node_of, result_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinybnn.autograd.tensor import Tensor
    from tinybnn.typing import TensorLike


def backward(
    output: Tensor,
    gradient: TensorLike | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Add the gradient of `output` to the ``.grad`` of every leaf it was computed from.

    Parameters
    ----------
    output : Tensor, of any shape
    gradient : Tensor or array of its shape, optional
        The gradient to start with. Required unless the output is a single number: then 1.
    retain_graph : bool, optional
        Keep the graph for another backward pass; by default the value of `create_graph`.
    create_graph : bool
        Record the backward pass itself, so that gradients can be differentiated again.
    """
    retain_graph = create_graph if retain_graph is None else retain_graph
    gradients = _initial_gradients("backward", [output], [gradient])
    by_leaf, exclusive = _propagate([output], gradients, None, retain_graph, create_graph)
    for leaf, share in by_leaf.items():
        share = _as_gradient(share, leaf, leaf in exclusive)
        leaf.grad = share if leaf.grad is None else leaf.grad + share


@overload
def grad(
    outputs: Tensor | Sequence[Tensor], inputs: Tensor, grad_outputs: Any = ...,
    create_graph: bool = ..., retain_graph: bool | None = ..., allow_unused: bool = ...,
) -> Tensor: ...  # fmt: skip


@overload
def grad(
    outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs: Any = ...,
    create_graph: bool = ..., retain_graph: bool | None = ..., allow_unused: bool = ...,
) -> tuple[Tensor, ...]: ...  # fmt: skip


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: TensorLike | Sequence[TensorLike | None] | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    allow_unused: bool = False,
) -> Tensor | tuple[Tensor | None, ...] | None:
    """Compute the gradients of `outputs` with respect to `inputs`, leaving every ``.grad`` alone.

    Parameters
    ----------
    outputs, inputs : Tensor or sequence of Tensors, of any shapes
        Inputs may be leaves or results of operations.
    grad_outputs : Tensor, array or sequence of them, optional
        The vector of the vector-Jacobian product: for each output one of its shape. None for an
        output that is a single number means 1.
    create_graph : bool
        Record the backward pass, so that the result can be differentiated again.
    retain_graph : bool, optional
        Keep the graph for another backward pass; by default the value of `create_graph`.
    allow_unused : bool
        Return None for an input that was not used to compute the outputs.

    Returns
    -------
    Tensor or tuple of Tensors
        One gradient for each input, of its shape and dtype (a single Tensor where `inputs` is one).

    Raises
    ------
    RuntimeError
        If an input was not used to compute the outputs, or the graph has been freed.
    """
    single = isinstance(inputs, Variable)
    inputs = [inputs] if single else list(inputs)
    if isinstance(outputs, Variable):
        outputs = [outputs]
        grad_outputs = None if grad_outputs is None else [grad_outputs]
    gradients = _initial_gradients("grad", outputs, grad_outputs)
    wanted = {node_of(x) for x in inputs}
    by_node, exclusive = _propagate(
        outputs, gradients, wanted, create_graph if retain_graph is None else retain_graph,
        create_graph,
    )  # fmt: skip
    # Rules may hold the gradient of an operation's result; that of a leaf has no other reader.
    leaves = {x for x in inputs if x.is_leaf and x in exclusive}
    exclusive = leaves if len(wanted) == len(inputs) else set()
    for i, x in enumerate(inputs):
        if node_of(x) not in by_node and not allow_unused:
            raise RuntimeError(f"grad: inputs[{i}] (shape {x.shape}) was not used by the outputs")
    result = tuple(
        _as_gradient(by_node[node_of(x)], x, x in exclusive) if node_of(x) in by_node else None
        for x in inputs
    )
    return result[0] if single else result


def _topological_order(roots):
    """Nodes reachable from the roots, each one after everything it was computed from.

    The search is depth-first with an explicit stack, since recursion would overflow Python's
    after 1,000 operations. The order matters: with y = f(x), z = g(y) + h(y), the rule of f may
    run only when both g and h have delivered their share of y's gradient.
    """
    order, seen = [], set()
    stack = [(root, False) for root in roots]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if isinstance(node, Function):
                if node.edges is None:
                    raise RuntimeError(
                        f"backward: the graph behind {type(node).__name__} was freed by an earlier "
                        "backward; pass retain_graph=True there if it is needed again"
                    )
                stack.extend([(edge, False) for edge in node.edges if edge is not None])
    return order


def _propagate(
    outputs: list[Variable],
    gradients: list[Tensor],
    wanted: set[Function | Variable] | None,
    retain_graph: bool,
    create_graph: bool,
) -> tuple[dict[Any, Any], set[Any]]:
    """Pass gradients from the outputs back to the `wanted` nodes (None: to all leaves).

    Returns
    -------
    gradients : dict of node to array or Tensor
    exclusive : set of nodes
        Those whose gradient is an array that nothing else references.
    """
    order = _topological_order([node_of(output) for output in outputs])
    useful = set()  # nodes on a path to a wanted one; the others are skipped
    for node in order:
        wants = isinstance(node, Variable) if wanted is None else node in wanted
        if wants or (isinstance(node, Function) and not useful.isdisjoint(node.edges)):
            useful.add(node)

    received, exclusive = {}, set()

    def deliver(node, gradient, is_fresh):
        if node in received:
            before, is_exclusive = received[node], node in exclusive
            fits = not create_graph and gradient.ndim and before.dtype == gradient.dtype
            if fits and (is_exclusive or is_fresh):  # sum in place, where nothing else refers
                gradient = np.add(before, gradient, out=before if is_exclusive else gradient)
            else:
                gradient = before + gradient
            is_fresh = True
        received[node] = gradient
        if is_fresh:
            exclusive.add(node)

    for output, gradient in zip(outputs, gradients, strict=True):
        deliver(node_of(output), gradient if create_graph else gradient.data, False)
    result = {}
    with contextlib.nullcontext() if create_graph else no_grad():
        for node in reversed(order):
            if node not in received or node not in useful:
                continue
            gradient = received.pop(node)
            if isinstance(node, Variable) or (wanted is not None and node in wanted):
                result[node] = gradient
            if isinstance(node, Function):
                needs = tuple([edge in useful for edge in node.edges])  # never None
                if any(needs):
                    for edge, share in node._gradients(gradient, needs, create_graph):
                        deliver(edge, share, node.fresh)
    if not retain_graph:
        for node in order:
            if isinstance(node, Function):
                node._release()
    return result, exclusive


def _initial_gradients(name: str, outputs: list[Variable], gradients: Any | None) -> list[Tensor]:
    """The gradient to start with for each output, of its shape: as given, or 1 for one number."""
    gradients = [None] * len(outputs) if gradients is None else gradients
    if len(gradients) != len(outputs):
        raise ValueError(f"{name}: {len(gradients)} gradients for {len(outputs)} outputs")
    result = []
    for output, gradient in zip(outputs, gradients, strict=True):
        if not output.requires_grad:
            raise RuntimeError(f"{name}: the output depends on nothing that requires grad")
        if gradient is None:
            if output.data.size != 1:
                raise RuntimeError(
                    f"{name}: an output of shape {output.shape} needs a gradient of that shape; "
                    "only a single number has an implicit gradient of 1"
                )
            gradient = np.ones_like(output.data)
        gradient = gradient if isinstance(gradient, Variable) else result_of(gradient)
        if gradient.shape != output.shape:
            raise ValueError(
                f"{name}: the gradient has shape {gradient.shape}, the output {output.shape}"
            )
        result.append(gradient.to(output.dtype))
    return result


def _as_gradient(gradient: Any, tensor: Variable, is_exclusive: bool) -> Tensor:
    """Make the gradient of `tensor` a Tensor of its dtype that shares no memory.

    It is copied unless it is exclusive: rules may return views and shared arrays.
    """
    if isinstance(gradient, Variable):
        return gradient.to(tensor.dtype)
    if is_exclusive and gradient.dtype == tensor.dtype:
        return result_of(gradient)
    return result_of(np.array(gradient, dtype=tensor.dtype, order="K"))
