"""`grad`: gradients as return values, where `backward` adds them to ``.grad``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from tinybnn.autograd.engine import Variable, as_gradient, initial_gradients, node_of, propagate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinybnn.autograd.tensor import Tensor
    from tinybnn.typing import TensorLike


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
    gradients = initial_gradients("grad", outputs, grad_outputs)
    wanted = {node_of(x) for x in inputs}
    by_node, exclusive = propagate(
        outputs, gradients, wanted, create_graph if retain_graph is None else retain_graph,
        create_graph,
    )  # fmt: skip
    # Rules may hold the gradient of an operation's result; that of a leaf is read by nobody else.
    leaves = {x for x in inputs if x.is_leaf and x in exclusive}
    exclusive = leaves if len(wanted) == len(inputs) else set()
    for i, x in enumerate(inputs):
        if node_of(x) not in by_node and not allow_unused:
            raise RuntimeError(f"grad: inputs[{i}] (shape {x.shape}) was not used by the outputs")
    result = tuple(
        as_gradient(by_node[node_of(x)], x, x in exclusive) if node_of(x) in by_node else None
        for x in inputs
    )
    return result[0] if single else result
