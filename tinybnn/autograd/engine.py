"""The autograd engine: arrays that remember how they were computed. Read it top to bottom.

A `Variable` wraps a NumPy array. An operation is a `Function`: a ``forward`` on arrays and, right
below it, a ``backward`` rule. Every application is recorded as a node of a graph, which
`autograd.backward` walks from the result to the leaves.

A rule is written once, in operations that accept both arrays and Variables. The usual backward pass
calls it with arrays. With ``create_graph=True`` it is called with Variables: its operations are
then recorded, too, and the gradient can be differentiated again.

Operations return a `Tensor` (`autograd.tensor`): a Variable with operators and methods.
"""

from __future__ import annotations

import contextlib
import operator
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tinybnn.autograd.floats import as_floats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike

    from tinybnn.autograd.tensor import Tensor
    from tinybnn.autograd.tracing import Tape
    from tinybnn.typing import Array, FloatArray, Shape, TensorLike, V

    C = TypeVar("C", bound=type)


class _State(threading.local):
    grad_enabled: bool = True  # no_grad() switches recording off
    tape: Tape | None = None  # tracing.trace() collects calls here
    scope: tuple[Any, ...] = ()  # the modules whose forward is running, outermost first


state: _State = _State()


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
    """A property for a path such as "_data.shape", faster than one with a getter in Python."""
    return property(operator.attrgetter(path), setter)


class Variable:
    """An array that takes part in automatic differentiation; see `Tensor`.

    Parameters
    ----------
    data : array_like or Variable, of any shape
        A Variable shares its memory with the new one, if the dtype allows.
    requires_grad : bool
        Whether `backward` computes ``grad``.
    dtype : numpy dtype, optional

    Attributes
    ----------
    grad : Tensor of the same shape, or None
    function : Function or None
        The recorded operation that computed this value; None for a leaf of the graph.
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
        """Whether this is a leaf of the graph: no recorded operation computed it."""
        return self.function is None

    def detach(self) -> Tensor:
        """Return a Tensor on the same data that is cut off from the graph."""
        return result_of(self)


_result_class: type = Variable


def class_of_results(cls: C) -> C:
    """Class decorator: operations return instances of this class."""
    global _result_class
    _result_class = cls
    return cls


def result_of(data: Any, requires_grad: bool = False) -> Tensor:
    """Make a Tensor, the class that operations return, of data of any shape."""
    return _result_class(data, requires_grad=requires_grad)


def as_array(x: Any) -> Any:
    """Return a Tensor's array, which a gradient rule treats as constant; others are unchanged."""
    return x.data if isinstance(x, Variable) else x


# ------------------------------------------------------------------------------------- functions


class Function:
    """One differentiable operation.

    A subclass implements two methods:

    ``forward(self, *arrays, **options)``
        Compute one array from NumPy arrays (or plain numbers). Store what ``backward`` needs
        besides inputs and output (an axis, a mask) in an attribute.
    ``backward(self, grad, output, *inputs)``
        Compute the gradient with respect to each input from the gradient with respect to the
        output: one value, or a tuple with one for each input. Use operations of `autograd` only,
        since all arguments may be arrays or Tensors. Where ``self.needs[i]`` is False, input i
        takes no gradient, and None is accepted for it.
    """

    saves: tuple[str, ...] = (
        "inputs",
    )  # what `backward` reads, "inputs", "output" or both; the rest is None
    broadcasts: bool = (
        False  # inputs are broadcast; the base class then sums gradients to their shapes
    )
    views: bool = False  # the output may be a view of the input: in-place changes affect both
    fresh: bool = False  # the rule's gradients are new arrays, referenced nowhere else
    needs: tuple[bool, ...]  # set before the rule runs: which inputs take a gradient
    shapes: list[Shape]  # of the inputs
    edges: (
        tuple[Any, ...] | None
    )  # the node of each input, or None; no tuple once the graph is freed

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Any:
        """Run the operation: return a Tensor if any input is one, else an array."""
        function = cls()
        for name, option in options.items():
            if isinstance(option, Variable):
                raise TypeError(
                    f"{cls.__name__}.apply: {name} is a Tensor, given by name; give Tensors by "
                    "position, since options have no gradient"
                )
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
    """Sum x to `shape`: over the axes along which `BroadcastTo` would repeat such an array."""

    saves: tuple[str, ...] = ()

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

    saves: tuple[str, ...] = ()
    views = True
    broadcasts = True

    def forward(self, x: Array, shape: Shape) -> Array:
        return np.broadcast_to(x, shape)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad
