"""The autograd engine: arrays that remember how they were computed. Read it top to bottom.

A `Variable` wraps a NumPy array. An operation is a `Function`: a ``forward`` on arrays and, right
below it, a ``backward`` rule. Every application is recorded as a node of a graph, and `backward`
walks that graph once, from the result to the leaves, in an order in which each node has received
all of its gradient before it passes any on.

A rule is written once, in operations that take arrays or Variables alike. On arrays it is the
backward pass. On Variables (``create_graph=True``) the very same lines are recorded in turn, so
the gradient can be differentiated again.

What results are made of is a `Tensor` (`autograd.tensor`): a Variable with operators and methods.
"""

from __future__ import annotations

import contextlib
import operator
import threading

import numpy as np


class _State(threading.local):
    grad_enabled = True  # no_grad() switches recording off
    tape = None  # tracing.trace() collects calls here
    scope = ()  # the modules whose forward is running, outermost first


state = _State()


@contextlib.contextmanager
def no_grad():
    """Context manager and decorator: operations inside are not recorded for `backward`."""
    before, state.grad_enabled = state.grad_enabled, False
    try:
        yield
    finally:
        state.grad_enabled = before


# ------------------------------------------------------------------------------------- variables


class Variable:
    """An array that takes part in automatic differentiation; see `Tensor`.

    Parameters
    ----------
    data : array_like or Variable
    requires_grad : bool
    dtype : numpy dtype, optional
    """

    __slots__ = ("__weakref__", "_data", "_version", "function", "grad", "requires_grad")

    def __init__(self, data, *more, requires_grad=False, dtype=None):
        if more:
            raise TypeError(
                f"{type(self).__name__}: takes one value, got {1 + len(more)}; write "
                f"{type(self).__name__}([3.0, 4.0]) for an array, and name the options: "
                "requires_grad=True, dtype=np.float64"
            )
        source = data if isinstance(data, Variable) else None
        data = data if source is None else source._data
        self._data = _as_floats(data, dtype, type(self).__name__)
        self.grad = None
        self.requires_grad = bool(requires_grad)
        self.function = None
        # Counts in-place changes; Tensors on the same memory share it.
        is_alias = source is not None and self._data is data
        self._version = source._version if is_alias else [0]
        if is_alias and state.tape is not None:
            state.tape.aliases[id(self)] = self, source

    def _replace_data(self, value):
        if state.tape is not None:
            state.tape.escape("x.data = y is not recorded; write x = y instead", self)
        self._version[0] += 1
        self._data = _as_floats(as_array(value), None, f"{type(self).__name__}.data")

    data = property(operator.attrgetter("_data"), _replace_data)
    shape = property(operator.attrgetter("_data.shape"))
    dtype = property(operator.attrgetter("_data.dtype"))
    ndim = property(operator.attrgetter("_data.ndim"))
    is_leaf = property(lambda self: self.function is None)

    def detach(self):
        """The same data, cut off from the graph."""
        return result_of(self)

    def backward(self, gradient=None, retain_graph=None, create_graph=False):
        """Add the gradient of this tensor to the ``.grad`` of every leaf it was computed from.

        Parameters
        ----------
        gradient : Tensor or array, optional
            Of this tensor's shape; needed unless the tensor holds a single number.
        retain_graph : bool, optional
            Keep the graph for another backward pass; by default the value of `create_graph`.
        create_graph : bool
            Record the backward pass itself, so that gradients can be differentiated again.
        """
        retain_graph = create_graph if retain_graph is None else retain_graph
        gradients = _initial_gradients("backward", [self], [gradient])
        found, own = _propagate([self], gradients, None, retain_graph, create_graph)
        for leaf, share in found.items():
            share = _as_gradient(share, leaf, leaf in own)
            leaf.grad = share if leaf.grad is None else leaf.grad + share


_result_class = Variable


def class_of_results(cls):
    """Class decorator: make what operations give an instance of this class."""
    global _result_class
    _result_class = cls
    return cls


def result_of(data, requires_grad=False):
    """A Variable of the class that operations give."""
    return _result_class(data, requires_grad=requires_grad)


FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def _as_floats(data, dtype, name):
    """An array of float32 or float64: of `dtype`, else of its own, else of float32."""
    if dtype is None and type(data) is np.ndarray and data.dtype in FLOATS:
        return data
    if dtype is not None:
        check_dtype(dtype, name)
    array = np.asarray(data)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "biu" and not (kind == "f" and size in (4, 8)):
        raise TypeError(
            f"{name}: expects float32, float64, integers or bools, got {array.dtype}; convert "
            "the data first, say by .astype(np.float32)"
        )
    if dtype is None:
        is_double = isinstance(data, np.ndarray | np.generic) and kind == "f" and size == 8
        dtype = np.float64 if is_double else np.float32
    return np.asarray(array, dtype)


def check_dtype(dtype, name):
    """Raise a TypeError that begins with `name` unless the dtype is float32 or float64."""
    if np.dtype(dtype) not in FLOATS:
        raise TypeError(f"{name}: dtype must be float32 or float64, got {np.dtype(dtype)}")


def as_array(x):
    """The array behind a Tensor; anything else unchanged. Its values are constants to a rule."""
    return x.data if isinstance(x, Variable) else x


def plain(value):
    """NumPy's scalars as Python's numbers, whose products with float32 arrays stay float32.

    Lists and tuples become tuples of such numbers; anything else stays as it is.
    """
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------------- functions


class Function:
    """One differentiable operation.

    A subclass gives two methods:

    ``forward(self, *arrays, **options)``
        NumPy arrays (or plain numbers) in, one array out. What the rule needs besides inputs and
        output (an axis, a mask) is kept as an attribute.
    ``backward(self, grad, output, *inputs)``
        The gradient with respect to each input, given the gradient with respect to the output:
        one value, or a tuple with one for each input. It uses operations of this module only, so
        that arrays and Tensors may come in. ``self.needs[i]`` is False where input i wants none;
        None is a fine answer there.
    """

    saves = ("inputs",)  # what of ("inputs", "output") the rule reads; the rest arrives as None
    broadcasts = False  # inputs broadcast against each other; the base class undoes it
    views = False  # the output may be a view of the input: an in-place change of one changes both
    fresh = False  # the rule's gradients are new arrays that nobody else holds

    @classmethod
    def apply(cls, *inputs, **options):
        """Run the operation. Only arrays in: an array out. A Tensor among them: a Tensor out."""
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

    def _record(self, inputs, arrays, output):
        """Make this call a node of the graph, with an edge to the node of each input."""
        self.edges = tuple(
            [_node(x) if isinstance(x, Variable) and x.requires_grad else None for x in inputs]
        )
        self.shapes = [np.shape(x) for x in arrays]
        self._inputs = inputs if "inputs" in self.saves else (None,) * len(inputs)
        self._output = output.data if "output" in self.saves else None
        # What the rule will read, and how often it had been changed in place by now.
        saved = [x for x in self._inputs if isinstance(x, Variable)]
        saved += [output] if self._output is not None else []
        self._versions = [(x._version, x._version[0]) for x in saved]
        output.requires_grad = True
        output.function = self

    def __repr__(self):
        return type(self).__name__

    def __reduce_ex__(self, protocol):
        raise TypeError(
            f"{type(self).__name__}: a node of a graph cannot be copied or pickled; copy the "
            "parameters, and compute anew"
        )

    def _release(self):
        self.edges = self._inputs = self._output = self._versions = None

    def _gradients(self, grad, needs, create_graph):
        """Evaluate the rule, undo broadcasting and check what came out."""
        for cell, version in self._versions:
            if cell[0] != version:
                raise RuntimeError(
                    f"backward: a Tensor that {type(self).__name__} needs was changed by an "
                    "in-place operator after it was used"
                )
        self.needs = needs
        inputs, output = self._inputs, self._output
        if create_graph:  # the output again, as the Tensor that it was
            if output is not None:
                output = result_of(output, requires_grad=True)
                output.function = self
        else:
            inputs = [x.data if isinstance(x, Variable) else x for x in inputs]
        results = self.backward(grad, output, *inputs)
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(needs):
            raise RuntimeError(
                f"{type(self).__name__}.backward gave {len(results)} gradients "
                f"for {len(needs)} inputs"
            )
        found = []
        for i, (result, shape, edge) in enumerate(
            zip(results, self.shapes, self.edges, strict=True)
        ):
            if not needs[i]:
                continue
            if result is None:
                raise RuntimeError(
                    f"{type(self).__name__}.backward gave no gradient for input {i}, "
                    "which needs one"
                )
            if self.broadcasts and np.shape(result) != shape:
                result = SumTo.apply(result, shape=shape)
            if np.shape(result) != shape:
                raise RuntimeError(
                    f"{type(self).__name__}.backward: the gradient of input {i} has shape "
                    f"{np.shape(result)}, the input has shape {shape}"
                )
            found.append((edge, result))
        return found


def _operand(x, dtype):
    """What meets Tensors of `dtype`. NumPy scalars, integers and bools must not make it float64.

    A Python number does not, nor does an array of the same dtype.
    """
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, np.ndarray):
        return x.astype(dtype) if x.dtype.kind in "iub" else x
    return x.recorded() if hasattr(x, "recorded") else x  # a comparison inside `trace`


def _node(tensor):
    """A computed Tensor is known by the Function that made it, a leaf by itself."""
    return tensor.function or tensor


class SumTo(Function):
    """Sum over the axes along which an array of `shape` was repeated."""

    saves = ()

    def forward(self, x, shape):
        added = x.ndim - len(shape)
        repeated = tuple(
            i for i, n in enumerate(x.shape) if i < added or (shape[i - added] == 1 and n != 1)
        )
        return x.sum(axis=repeated, keepdims=True).reshape(shape)

    def backward(self, grad, output, x):
        return BroadcastTo.apply(grad, shape=self.shapes[0])


class BroadcastTo(Function):
    saves = ()
    views = True
    broadcasts = True

    def forward(self, x, shape):
        return np.broadcast_to(x, shape)

    def backward(self, grad, output, x):
        return grad


# ----------------------------------------------------------------------------- the backward pass


def _topological_order(roots):
    """Nodes reachable from the roots, each one after everything it was computed from.

    Depth-first with an explicit stack: Python's own would overflow after 1,000 operations. The
    order matters: with y = f(x), z = g(y) + h(y), the rule of f may run only when both g and h
    have delivered their share of y's gradient.
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


def _propagate(outputs, gradients, wanted, retain_graph, create_graph):
    """Gradients of the `wanted` nodes (None: of all leaves).

    Returns
    -------
    dict node -> array or Tensor, and the set of nodes whose gradient nobody else holds
    """
    order = _topological_order([_node(output) for output in outputs])
    useful = set()  # nodes through which a wanted one is reached; the others cost no work
    for node in order:
        wants = isinstance(node, Variable) if wanted is None else node in wanted
        if wants or (isinstance(node, Function) and not useful.isdisjoint(node.edges)):
            useful.add(node)

    received, own = {}, set()

    def deliver(node, gradient, is_fresh):
        if node in received:
            before, is_mine = received[node], node in own
            fits = not create_graph and gradient.ndim and before.dtype == gradient.dtype
            if fits and (is_mine or is_fresh):  # the sum goes where nobody else looks
                gradient = np.add(before, gradient, out=before if is_mine else gradient)
            else:
                gradient = before + gradient
            is_fresh = True
        received[node] = gradient
        if is_fresh:
            own.add(node)

    for output, gradient in zip(outputs, gradients, strict=True):
        deliver(_node(output), gradient if create_graph else gradient.data, False)
    result = {}
    with contextlib.nullcontext() if create_graph else no_grad():
        for node in reversed(order):
            if node not in received or node not in useful:
                continue
            gradient = received.pop(node)
            if isinstance(node, Variable) or (wanted is not None and node in wanted):
                result[node] = gradient
            if isinstance(node, Function):
                needs = tuple([edge in useful for edge in node.edges])  # None is not
                if any(needs):
                    for edge, share in node._gradients(gradient, needs, create_graph):
                        deliver(edge, share, node.fresh)
    if not retain_graph:
        for node in order:
            if isinstance(node, Function):
                node._release()
    return result, own


def _initial_gradients(name, outputs, gradients):
    """The gradient that each output starts with: given, or 1 for a single number."""
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


def grad(
    outputs, inputs, grad_outputs=None, create_graph=False, retain_graph=None, allow_unused=False
):
    """Gradients of `outputs` with respect to `inputs`; no ``.grad`` is touched.

    Parameters
    ----------
    outputs, inputs : Tensor or sequence of Tensors
        Inputs may be leaves or results of operations.
    grad_outputs : Tensor, array or sequence of them, optional
        The vector in the vector-Jacobian product, one for each output, of its shape. May be left
        out where an output is a single number.
    create_graph : bool
        Record the backward pass, so that the result can be differentiated again.
    retain_graph : bool, optional
        Keep the graph for another backward pass; by default the value of `create_graph`.
    allow_unused : bool
        Give None for an input that was not used to compute the outputs.

    Returns
    -------
    Tensor or tuple of Tensors
        One gradient for each input, of its shape (a single Tensor where `inputs` is one).

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
    wanted = {_node(x) for x in inputs}
    found, own = _propagate(
        outputs, gradients, wanted, create_graph if retain_graph is None else retain_graph,
        create_graph,
    )  # fmt: skip
    # Rules have read the gradient of a result of operations; that of a leaf is nobody else's.
    own = {x for x in inputs if x.is_leaf and x in own} if len(wanted) == len(inputs) else ()
    for i, x in enumerate(inputs):
        if _node(x) not in found and not allow_unused:
            raise RuntimeError(f"grad: inputs[{i}] (shape {x.shape}) was not used by the outputs")
    result = tuple(
        _as_gradient(found[_node(x)], x, x in own) if _node(x) in found else None for x in inputs
    )
    return result[0] if single else result


def _as_gradient(gradient, tensor, is_own):
    """A Tensor that nobody else changes: rules may hand on views and shared arrays."""
    if isinstance(gradient, Variable):
        return gradient.to(tensor.dtype)
    if is_own and gradient.dtype == tensor.dtype:
        return result_of(gradient)
    return result_of(np.array(gradient, dtype=tensor.dtype, order="K"))
