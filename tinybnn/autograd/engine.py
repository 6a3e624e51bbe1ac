"""The autograd engine: arrays that remember how they were computed. Read it top to bottom.

A `Variable` wraps a NumPy array. An operation is a `Function`: a ``forward`` on arrays and, right
below it, a ``backward`` rule. Every application is recorded as a node of a graph, and `backward`
walks that graph once, from the result to the leaves, in an order in which each node has received
all of its gradient before it passes any on.

A rule is written once, in operations that accept both arrays and Variables. On arrays it is the
backward pass. On Variables (``create_graph=True``) the same lines are recorded in turn, so the
gradient can be differentiated again.

Operations return a `Tensor` (`autograd.tensor`): a Variable with operators and methods.
"""

from __future__ import annotations

import contextlib
import operator
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd.floats import as_floats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike

    from tinybnn.autograd.tensor import Tensor
    from tinybnn.autograd.tracing import Tape
    from tinybnn.typing import Array, FloatArray, Shape, TensorLike, V


class _State(threading.local):
    grad_enabled: bool = True  # no_grad() switches recording off
    tape: Tape | None = None  # tracing.trace() collects calls here
    scope: tuple[Any, ...] = ()  # the modules whose forward is running, outermost first


state = _State()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Context manager and decorator: do not record the operations inside for `backward`."""
    before, state.grad_enabled = state.grad_enabled, False
    try:
        yield
    finally:
        state.grad_enabled = before


# ------------------------------------------------------------------------------------- variables


def _property(path: str, setter: Any = None) -> Any:
    """A property that reads a path of attributes faster than a Python function does."""
    return property(operator.attrgetter(path), setter)


class Variable:
    """An array that takes part in automatic differentiation; see `Tensor`.

    Parameters
    ----------
    data : array_like or Variable, of any shape
    requires_grad : bool
    dtype : numpy dtype, optional
    """

    __slots__ = ("__weakref__", "_data", "_version", "function", "grad", "requires_grad")
    grad: Tensor | None
    function: Function | None
    requires_grad: bool

    def __init__(
        self,
        data: TensorLike | Variable,
        *more: Any,
        requires_grad: bool = False,
        dtype: DTypeLike | None = None,
    ) -> None:
        if more:
            raise TypeError(
                f"{type(self).__name__}: takes one value, got {1 + len(more)}; write "
                f"{type(self).__name__}([3.0, 4.0]) for an array, and name the options: "
                "requires_grad=True, dtype=np.float64"
            )
        source = data if isinstance(data, Variable) else None
        data = data if source is None else source._data
        self._data = as_floats(data, dtype, type(self).__name__)
        self.grad = None
        self.requires_grad = bool(requires_grad)
        self.function = None
        # A counter of in-place changes, shared by the Tensors on the same memory.
        is_alias = source is not None and self._data is data
        self._version = source._version if is_alias else [0]
        if is_alias and state.tape is not None:
            state.tape.aliases[id(self)] = self, source

    def _replace_data(self, value):
        if state.tape is not None:
            state.tape.escape("x.data = y is not recorded; write x = y instead", self)
        self._version[0] += 1
        self._data = as_floats(as_array(value), None, f"{type(self).__name__}.data")

    data: FloatArray = _property("_data", _replace_data)
    shape: Shape = _property("_data.shape")
    dtype: np.dtype[Any] = _property("_data.dtype")
    ndim: int = _property("_data.ndim")

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation computed it."""
        return self.function is None

    def detach(self) -> Tensor:
        """Return a Tensor on the same data that is cut off from the graph."""
        return result_of(self)

    def backward(
        self,
        gradient: TensorLike | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
    ) -> None:
        """Add the gradient of this tensor to the ``.grad`` of every leaf it was computed from.

        Parameters
        ----------
        gradient : Tensor or array of this tensor's shape, optional
            The gradient to start with. Required unless the tensor holds a single number: then 1.
        retain_graph : bool, optional
            Keep the graph for another backward pass; by default the value of `create_graph`.
        create_graph : bool
            Record the backward pass itself, so that gradients can be differentiated again.
        """
        retain_graph = create_graph if retain_graph is None else retain_graph
        gradients = initial_gradients("backward", [self], [gradient])
        by_leaf, exclusive = propagate([self], gradients, None, retain_graph, create_graph)
        for leaf, share in by_leaf.items():
            share = as_gradient(share, leaf, leaf in exclusive)
            leaf.grad = share if leaf.grad is None else leaf.grad + share


_result_class: type = Variable


def class_of_results(cls: type[Tensor]) -> type[Tensor]:
    """Class decorator: operations return instances of this class."""
    global _result_class
    _result_class = cls
    return cls


def result_of(data: Any, requires_grad: bool = False) -> Tensor:
    """Make a Tensor, the class that operations return, of data of any shape."""
    return _result_class(data, requires_grad=requires_grad)


def as_array(x: Any) -> Any:
    """Return a Tensor's array, and anything else unchanged; its values are constants to a rule."""
    return x.data if isinstance(x, Variable) else x


# ------------------------------------------------------------------------------------- functions


class Function:
    """One differentiable operation.

    A subclass gives two methods:

    ``forward(self, *arrays, **options)``
        Compute one array from NumPy arrays (or plain numbers). Keep what the rule needs besides
        inputs and output (an axis, a mask) as an attribute.
    ``backward(self, grad, output, *inputs)``
        Compute the gradient with respect to each input from the gradient with respect to the
        output: one value, or a tuple with one for each input. Use operations of `autograd` only,
        since all arguments may be arrays or Tensors. Where ``self.needs[i]`` is False, input i
        takes no gradient and None will do.
    """

    saves: tuple[str, ...] = ("inputs",)  # or "output": what the rule reads; the rest is None
    broadcasts: bool = False  # inputs broadcast against each other; the base class undoes it
    views: bool = False  # the output may be a view of the input: in-place changes affect both
    fresh: bool = False  # the rule's gradients are new arrays, referenced nowhere else
    needs: tuple[bool, ...]  # set before the rule runs: which inputs take a gradient
    shapes: list[Shape]  # of the inputs
    edges: tuple[Any, ...] | None  # the node of each input, or None; None: the graph was freed

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Any:
        """Run the operation: on arrays it returns an array, with a Tensor among them a Tensor."""
        function = cls()
        tensors = [x for x in inputs if isinstance(x, Variable)]
        if 0 < len(tensors) < len(inputs):
            dtype = np.result_type(*[x.data.dtype for x in tensors])
            inputs = tuple([_operand(x, dtype) for x in inputs])
        arrays = [x.data if isinstance(x, Variable) else x for x in inputs]
        try:
            data = function.forward(*arrays, **options)
        except ValueError as error:
            if not cls.broadcasts:
                raise
            shapes = " and ".join(str(np.shape(a)) for a in arrays)
            raise ValueError(f"{cls.__name__}: shapes {shapes} do not fit: {error}") from None
        if not tensors:
            return data
        output = result_of(data)
        if cls.views and np.may_share_memory(data, arrays[0]):
            output._version = inputs[0]._version
        if state.grad_enabled and any([x.requires_grad for x in tensors]):
            function._record(inputs, arrays, output)
        if state.tape is not None:
            state.tape.record(function, inputs, options, output)
        return output

    def _record(self, inputs: tuple[Any, ...], arrays: list[Any], output: Tensor) -> None:
        """Make this call a node of the graph, with an edge to the node of each input."""
        self.edges = tuple(
            [node_of(x) if isinstance(x, Variable) and x.requires_grad else None for x in inputs]
        )
        self.shapes = [np.shape(x) for x in arrays]
        self._inputs = inputs if "inputs" in self.saves else (None,) * len(inputs)
        self._output = output.data if "output" in self.saves else None
        # The Tensors that the rule will read, each with its present count of in-place changes.
        saved = [x for x in self._inputs if isinstance(x, Variable)]
        saved += [output] if self._output is not None else []
        self._versions = [(x._version, x._version[0]) for x in saved]
        output.requires_grad = True
        output.function = self

    def __repr__(self) -> str:
        return type(self).__name__

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"{type(self).__name__}: a node of a graph cannot be copied or pickled; copy the "
            "parameters and compute the result again"
        )

    def _release(self) -> None:
        self.edges = self._inputs = self._output = self._versions = None

    def _gradients(self, grad, needs, create_graph):
        """Evaluate the rule, undo broadcasting and check the result: pairs (edge, gradient)."""
        for cell, version in self._versions:
            if cell[0] != version:
                raise RuntimeError(
                    f"backward: a Tensor that {type(self).__name__} needs was changed by an "
                    "in-place operator after it was used"
                )
        self.needs = needs
        inputs, output = self._inputs, self._output
        if create_graph:  # the output as a Tensor at its place in the graph
            if output is not None:
                output = result_of(output, requires_grad=True)
                output.function = self
        else:
            inputs = [x.data if isinstance(x, Variable) else x for x in inputs]
        results = self.backward(grad, output, *inputs)
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(needs):
            raise RuntimeError(
                f"{type(self).__name__}.backward returned {len(results)} gradients "
                f"for {len(needs)} inputs"
            )
        gradients = []
        for i, (result, shape, edge) in enumerate(
            zip(results, self.shapes, self.edges, strict=True)
        ):
            if not needs[i]:
                continue
            if result is None:
                raise RuntimeError(
                    f"{type(self).__name__}.backward returned no gradient for input {i}, "
                    "which needs one"
                )
            if self.broadcasts and np.shape(result) != shape:
                result = SumTo.apply(result, shape=shape)
            if np.shape(result) != shape:
                raise RuntimeError(
                    f"{type(self).__name__}.backward: the gradient of input {i} has shape "
                    f"{np.shape(result)}, the input has shape {shape}"
                )
            gradients.append((edge, result))
        return gradients


def _operand(x, dtype):
    """Convert an operand so that NumPy's promotion with Tensors of `dtype` does not give float64.

    NumPy scalars, integers and bools would; Python numbers and arrays of that dtype would not.
    """
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, np.ndarray):
        return x.astype(dtype) if x.dtype.kind in "iub" else x
    return x.recorded() if hasattr(x, "recorded") else x  # a comparison inside `trace`


def node_of(tensor: Variable) -> Function | Variable:
    """The node of the graph: the Function that computed the tensor, or a leaf itself."""
    return tensor.function or tensor


class SumTo(Function):
    """Sum x over the axes along which an array of `shape` was repeated: the result has `shape`."""

    saves = ()

    def forward(self, x: Array, shape: Shape) -> Array:
        added = x.ndim - len(shape)
        repeated = tuple(
            i for i, n in enumerate(x.shape) if i < added or (shape[i - added] == 1 and n != 1)
        )
        return x.sum(axis=repeated, keepdims=True).reshape(shape)

    def backward(self, grad: V, output: V, x: V) -> V:
        return BroadcastTo.apply(grad, shape=self.shapes[0])


class BroadcastTo(Function):
    """Repeat x along axes of size 1, and along new leading axes, up to `shape`."""

    saves = ()
    views = True
    broadcasts = True

    def forward(self, x: Array, shape: Shape) -> Array:
        return np.broadcast_to(x, shape)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad


# ----------------------------------------------------------------------------- the backward pass


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


def propagate(
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


def initial_gradients(name: str, outputs: list[Variable], gradients: Any | None) -> list[Tensor]:
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


def as_gradient(gradient: Any, tensor: Variable, is_exclusive: bool) -> Tensor:
    """Make the gradient of `tensor` a Tensor of its dtype, with memory of its own.

    It is copied unless it is exclusive: rules may return views and shared arrays.
    """
    if isinstance(gradient, Variable):
        return gradient.to(tensor.dtype)
    if is_exclusive and gradient.dtype == tensor.dtype:
        return result_of(gradient)
    return result_of(np.array(gradient, dtype=tensor.dtype, order="K"))
