"""The autograd engine: arrays that remember how they were computed.

Read it top to bottom. A `Tensor` wraps a NumPy array. An operation is a `Function`: a
``forward`` on arrays and, right below it, a ``backward`` rule. Every application is recorded as
a node of a graph, and `backward` walks that graph once, from the result to the leaves, in an
order in which each node has received all of its gradient before it passes any on.

A rule is written once, in operations that take arrays or Tensors alike. On arrays it is the
backward pass. On Tensors (``create_graph=True``) the very same lines are recorded in turn, so
the gradient can be differentiated again.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import sys
import threading
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

# ------------------------------------------------------------------------------------ the engine


class _State(threading.local):
    grad_enabled = True  # no_grad() switches recording off
    tape = None  # trace() collects calls here
    scope = ()  # the modules whose forward is running, outermost first


_state = _State()


@contextlib.contextmanager
def no_grad():
    """Context manager and decorator: operations inside are not recorded for `backward`."""
    before, _state.grad_enabled = _state.grad_enabled, False
    try:
        yield
    finally:
        _state.grad_enabled = before


@dataclass(frozen=True)
class Call:
    """One operation that ran inside `trace`: what was applied to what, and where."""

    function: Function
    inputs: tuple
    options: dict
    output: Tensor
    scope: tuple  # the modules whose forward was running, outermost first
    line: tuple = ()  # (file, number) in a forward method that is not of this package, else ()


@dataclass(frozen=True)
class Escape:
    """Something that a traced model did and its tape cannot repeat for another input."""

    tensors: tuple  # harmless if none of these depends on the input; () for a harm in any case
    reason: str
    scope: tuple  # the modules whose forward was running, outermost first
    line: tuple = ()  # as in `Call`


class Tape(list):
    """The calls of a `trace` block in order.

    Attributes
    ----------
    modules : list of (module, inputs, output)
        The modules that ran, in the order in which they ended.
    aliases : dict
        ``id(x)`` of a Tensor that is another one without its graph, by `Tensor.detach`, to
        ``(x, that other Tensor)``.
    escapes : list of Escape
    failed : tuple
        The modules that were running when one of them raised an exception, outermost first.
    """

    def __init__(self):
        super().__init__()
        self.modules = []
        self.failed = ()
        self.aliases = {}
        self.escapes = []
        self._changed = {}  # id -> version cell of memory that an in-place operator changed

    def source(self, x):
        """The Tensor that x is an alias of, or x itself."""
        while id(x) in self.aliases:
            x = self.aliases[id(x)][1]
        return x

    def escape(self, reason, *tensors):
        """Note that the values of `tensors` leave the tape, or that the model changes itself."""
        self.escapes.append(Escape(tensors, reason, _state.scope, _line_of_model()))

    def record(self, function, inputs, options, output):
        """Append a call."""
        self.reads(*inputs)
        self.append(Call(function, inputs, options, output, _state.scope, _line_of_model()))

    def reads(self, *inputs):
        """Note which of `inputs` are not any more what the tape knows: see `changed`."""
        if not self._changed:
            return
        for x in inputs:
            if isinstance(x, Tensor) and id(x._version) in self._changed:
                self.escape(
                    "it is read after an in-place operator changed it under another name, or in a "
                    "view; write x = x + y there",
                    x,
                )

    def changed(self, x):
        """An in-place operator gave its name to a new Tensor; x and views of it are outdated."""
        self._changed[id(x._version)] = x._version


def _line_of_model():
    """(file, number) of the line that runs in the innermost module's forward; () in our own."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not traced_forward.__code__:
        if not frame.f_globals.get("__name__", "").startswith("tinybnn."):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return ()


class Comparison:
    """What ``x > y`` gives inside `trace`: the boolean array, and what it was made of.

    As the condition of `where`, or as an operand of a Tensor, it is recorded. It can do whatever
    the array can; but what that gives is a constant to the tape, which is told so (`Tape.escapes`).
    """

    __hash__ = None
    __array_priority__ = 1000

    def __init__(self, array, operator, inputs):
        self.array, self.operator, self.inputs = array, operator, inputs

    def recorded(self):
        """1.0 where it holds, else 0.0, as a Tensor that the tape knows."""
        return Compare.apply(*self.inputs, operator=self.operator)

    def _values(self, use):
        if _state.tape is not None:
            _state.tape.escape(
                f"the result of a comparison ({self.operator}) is used by {use}; only "
                "where(x > y, ...) and products such as x * (x > 0) have a packed form",
                *(x for x in self.inputs if isinstance(x, Tensor)),
            )
        return self.array

    shape = property(lambda self: self.array.shape)
    dtype = property(lambda self: self.array.dtype)
    ndim = property(lambda self: self.array.ndim)
    size = property(lambda self: self.array.size)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._values(name), name)

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values("a NumPy function"), dtype=dtype, copy=copy)

    def __repr__(self):
        return f"Comparison({self.array!r})"


def _as_array_method(name):
    """A special method of arrays, which Python looks up in the class only."""

    def method(self, *others):
        if any(isinstance(other, Tensor) for other in others):
            return NotImplemented  # it is the Tensor's business
        others = [other.array if isinstance(other, Comparison) else other for other in others]
        return getattr(self._values(name.strip("_")), name)(*others)

    return method


for _name in (
    "bool", "int", "float", "index", "len", "iter", "getitem", "contains", "invert", "neg", "abs",
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "rand", "ror", "rxor",
    "add", "sub", "mul", "truediv", "pow", "matmul", "radd", "rsub", "rmul", "rtruediv", "rpow",
):  # fmt: skip
    setattr(Comparison, f"__{_name}__", _as_array_method(f"__{_name}__"))


@contextlib.contextmanager
def trace():
    """Collect every operation on Tensors inside the block, in order of execution.

    Yields
    ------
    Tape
        Grows while the block runs. Calls inside another ``trace`` block belong to the inner one.
    """
    before, _state.tape = _state.tape, Tape()
    try:
        yield _state.tape
    finally:
        _state.tape = before


def traced_forward(module, inputs):
    """Run a module's forward with its calls marked as made by it (see `Call.scope`)."""
    before, tape = _state.scope, _state.tape
    _state.scope = (*before, module)
    try:
        output = module.forward(*inputs)
    except Exception:
        tape.failed = tape.failed or _state.scope
        raise
    finally:
        _state.scope = before
    tape.modules.append((module, inputs, output))
    return output


def is_tracing():
    """Whether a `trace` block is open in this thread."""
    return _state.tape is not None


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
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        if 0 < len(tensors) < len(inputs):
            dtype = np.result_type(*[x.data.dtype for x in tensors])
            inputs = tuple([_operand(x, dtype) for x in inputs])
        arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        try:
            data = function.forward(*arrays, **options)
        except ValueError as error:
            if not cls.broadcasts:
                raise
            shapes = " and ".join(str(np.shape(a)) for a in arrays)
            raise ValueError(f"{cls.__name__}: shapes {shapes} do not fit: {error}") from None
        if not tensors:
            return data
        output = Tensor(data)
        if cls.views and np.may_share_memory(data, arrays[0]):
            output._version = inputs[0]._version
        if _state.grad_enabled and any([x.requires_grad for x in tensors]):
            function._record(inputs, arrays, output)
        if _state.tape is not None:
            _state.tape.record(function, inputs, options, output)
        return output

    def _record(self, inputs, arrays, output):
        """Make this call a node of the graph, with an edge to the node of each input."""
        self.edges = tuple(
            [_node(x) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs]
        )
        self.shapes = [_shape(x) for x in arrays]
        self._inputs = inputs if "inputs" in self.saves else (None,) * len(inputs)
        self._output = output.data if "output" in self.saves else None
        # What the rule will read, and how often it had been changed in place by now.
        saved = [x for x in self._inputs if isinstance(x, Tensor)]
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
                output = Tensor(output, requires_grad=True)
                output.function = self
        else:
            inputs = [x.data if isinstance(x, Tensor) else x for x in inputs]
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
            if self.broadcasts:
                result = _unbroadcast(result, shape)
            if _shape(result) != shape:
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
    if isinstance(x, Comparison):
        return x.recorded()
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, np.ndarray) and x.dtype.kind in "iub":
        return x.astype(dtype)
    return x


def _shape(x):
    return x.shape if hasattr(x, "shape") else np.shape(x)


def _node(tensor):
    """A computed Tensor is known by the Function that made it, a leaf by itself."""
    return tensor.function or tensor


def _unbroadcast(grad, shape):
    """Sum `grad` over the axes along which an input of `shape` was repeated."""
    if np.shape(grad) == shape:
        return grad
    added = np.ndim(grad) - len(shape)
    repeated = tuple(
        i for i, n in enumerate(np.shape(grad)) if i < added or (shape[i - added] == 1 and n != 1)
    )
    return reshape(Sum.apply(grad, dim=repeated, keepdim=True), shape)


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
                stack.extend((edge, False) for edge in node.edges if edge is not None)
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
        wants = isinstance(node, Tensor) if wanted is None else node in wanted
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
            if isinstance(node, Tensor) or (wanted is not None and node in wanted):
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
        gradient = gradient if isinstance(gradient, Tensor) else Tensor(gradient)
        if gradient.shape != output.shape:
            raise ValueError(
                f"{name}: the gradient has shape {gradient.shape}, the output {output.shape}"
            )
        result.append(gradient.to(output.dtype))
    return result


def grad(outputs, inputs, grad_outputs=None, create_graph=False, retain_graph=None):
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

    Returns
    -------
    Tensor or tuple of Tensors
        One gradient for each input, of its shape (a single Tensor where `inputs` is one).

    Raises
    ------
    RuntimeError
        If an input was not used to compute the outputs, or the graph has been freed.
    """
    single = isinstance(inputs, Tensor)
    inputs = [inputs] if single else list(inputs)
    if isinstance(outputs, Tensor):
        outputs = [outputs]
        grad_outputs = None if grad_outputs is None else [grad_outputs]
    gradients = _initial_gradients("grad", outputs, grad_outputs)
    wanted = {_node(x) for x in inputs}
    found, _ = _propagate(
        outputs, gradients, wanted, create_graph if retain_graph is None else retain_graph,
        create_graph,
    )  # fmt: skip
    for i, x in enumerate(inputs):
        if _node(x) not in found:
            raise RuntimeError(f"grad: inputs[{i}] (shape {x.shape}) was not used by the outputs")
    result = tuple(_as_gradient(found[_node(x)], x, False) for x in inputs)
    return result[0] if single else result


def _as_gradient(gradient, tensor, is_own):
    """A Tensor that nobody else changes: rules may hand on views and shared arrays."""
    if isinstance(gradient, Tensor):
        return gradient.to(tensor.dtype)
    if is_own and gradient.dtype == tensor.dtype:
        return Tensor(gradient)
    return Tensor(np.array(gradient, dtype=tensor.dtype, order="K"))


# ------------------------------------------------------------------------------------- randomness

_generator = np.random.default_rng()


def manual_seed(seed):
    """Restart the generator that layers draw from when they are given none of their own."""
    global _generator
    _generator = np.random.default_rng(seed)


def default_generator():
    """The numpy.random.Generator that `manual_seed` restarts."""
    return _generator


# ------------------------------------------------------------------------------------- the tensor


class Tensor:
    """An n-dimensional array of floats that takes part in automatic differentiation.

    Parameters
    ----------
    data : array_like or Tensor
        A floating-point array keeps its dtype and its memory (no copy); anything else becomes
        float32.
    requires_grad : bool
        Whether operations on this tensor are recorded, so that `backward` reaches it.
    dtype : numpy dtype, optional
        float32 or float64; converts the data.

    Raises
    ------
    TypeError
        For data of another kind than integers, bools, float32 and float64.

    Attributes
    ----------
    data : numpy.ndarray
        The values. Whatever is assigned becomes an array as in the constructor, also a Tensor:
        ``p.data = p.data - lr * p.grad`` and ``p.data -= lr * p.grad`` are updates by hand.
    grad : Tensor or None
        Sum of the gradients that `backward` brought here since it was None; on leaves only.
    function : Function or None
        The operation that made this tensor; None for a leaf.

    Notes
    -----
    Comparisons (``x > 0``) give plain boolean arrays: they have no gradient.

    ``x += y`` (and -=, *=, /=) makes a new Tensor x + y and binds the name to it where a graph
    records x or y, and inside `trace`; a second name for the old Tensor keeps the old values. Under
    `no_grad`, or where nothing requires grad, it changes the array itself. A leaf that requires
    grad is changed under `no_grad` only.

    An array that meets a Tensor gives a Tensor, in NumPy's functions too (``np.exp(x)``, ``array
    += x``). A NumPy function without a gradient rule takes the values where no graph records them,
    and is an error where a gradient would be lost.

    Examples
    --------
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    Tensor([2., 4.])

    Training by hand, as in PyTorch:

    >>> w = Tensor([0.0], requires_grad=True)
    >>> for step in range(3):
    ...     loss = ((w - 4.0) ** 2).sum()
    ...     w.grad = None
    ...     loss.backward()
    ...     with no_grad():
    ...         w -= 0.25 * w.grad
    >>> w
    Tensor([3.5], requires_grad=True)

    and as in micrograd:

    >>> w = Tensor(0.0, requires_grad=True)
    >>> for step in range(3):
    ...     loss = (w - 4.0) ** 2
    ...     w.grad = None
    ...     loss.backward()
    ...     w.data -= 0.25 * w.grad
    >>> w
    Tensor(3.5, requires_grad=True)
    """

    __slots__ = ("__weakref__", "_data", "_version", "function", "grad", "requires_grad")
    __hash__ = object.__hash__  # by identity, although == compares elements

    def __init__(self, data, *more, requires_grad=False, dtype=None):
        if more:
            raise TypeError(
                f"{type(self).__name__}: takes one value, got {1 + len(more)}; write "
                f"{type(self).__name__}([3.0, 4.0]) for an array, and name the options: "
                "requires_grad=True, dtype=np.float64"
            )
        source = data if isinstance(data, Tensor) else None
        data = as_array(data)
        self._data = _as_floats(data, dtype, type(self).__name__)
        self.grad = None
        self.requires_grad = bool(requires_grad)
        self.function = None
        # Counts in-place changes; Tensors on the same memory share it.
        is_alias = source is not None and self._data is data
        self._version = source._version if is_alias else [0]
        if is_alias and _state.tape is not None:
            _state.tape.aliases[id(self)] = self, source

    def _replace_data(self, value):
        if _state.tape is not None:
            _state.tape.escape("x.data = y is not recorded; write x = y instead", self)
        self._version[0] += 1
        self._data = _as_floats(as_array(value), None, f"{type(self).__name__}.data")

    data = property(operator.attrgetter("_data"), _replace_data)
    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    is_leaf = property(lambda self: self.function is None)
    T = property(lambda self: transpose(self, -2, -1))

    def numel(self):
        """Number of elements."""
        return self.data.size

    def numpy(self):
        """The array itself (shared memory, no copy)."""
        self._leaves_tape("numpy()")
        return self.data

    def _leaves_tape(self, way):
        """Note inside `trace` that what is made of this tensor's values is not recorded."""
        if _state.tape is not None:
            _state.tape.escape(
                f"{way} takes values of the input out of the model, and what is made of them would "
                "be fixed; use operations on Tensors, or skip it unless self.training",
                self,
            )

    def item(self):
        """The value of a tensor with one element, as a Python float."""
        self._leaves_tape("item() or float()")
        if self.data.size != 1:
            raise ValueError(f"item: the tensor has {self.data.size} elements (shape {self.shape})")
        return self.data.item()

    def detach(self):
        """The same data, cut off from the graph."""
        return Tensor(self)

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

    # Copies. As in PyTorch, only a leaf can be copied: what a graph has made belongs to it.
    def __copy__(self):
        """Another Tensor on the same memory, at the same place in the graph."""
        other = type(self).__new__(type(self))
        attributes, slots = super().__reduce_ex__(2)[2]
        for name, value in {**(attributes or {}), **slots}.items():
            setattr(other, name, value)  # the count of in-place changes is shared as the memory is
        return other

    def __reduce_ex__(self, protocol):
        if self.function is not None:
            raise RuntimeError(
                f"Tensor: the result of {self.function} (shape {self.shape}) belongs to a graph "
                "and cannot be copied or pickled; use .detach() first"
            )
        constructor, arguments, (attributes, slots), *rest = super().__reduce_ex__(protocol)
        slots["_data"] = _InMemoryOrder(self.data)
        return constructor, arguments, (attributes, slots), *rest

    def __repr__(self):
        body = np.array2string(self.data, separator=", ", prefix="Tensor(")
        extra = ", dtype=float64" if self.dtype == np.float64 else ""
        if self.function is not None:
            extra += f", function={type(self.function).__name__}"
        elif self.requires_grad:
            extra += ", requires_grad=True"
        return f"Tensor({body}{extra})"

    def __len__(self):
        return len(self.data)

    def __bool__(self):
        self._leaves_tape("an if or bool()")
        return bool(self.data)

    def __float__(self):
        return float(self.item())

    def __array__(self, dtype=None, copy=None):
        if _state.grad_enabled and self.requires_grad:
            raise _loses_gradient("a NumPy function")
        self._leaves_tape("a NumPy function")
        return np.array(self.data, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        """What NumPy's elementwise functions and ``array * tensor`` do with a Tensor."""
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        recorded = _state.grad_enabled and any([x.requires_grad for x in tensors])
        operation = OF_NUMPY.get(ufunc) if method == "__call__" and not options else None
        if operation and (out is None or recorded or _state.tape is not None):
            return operation(*inputs)  # after `array += tensor` the name is that of a Tensor
        if recorded:
            raise _loses_gradient(f"np.{ufunc.__name__}")
        for x in tensors:
            x._leaves_tape(f"np.{ufunc.__name__}")
        if out is not None:
            options["out"] = tuple(map(as_array, out))
        result = getattr(ufunc, method)(*map(as_array, inputs), **options)
        return Tensor(result) if getattr(result, "dtype", None) in _FLOATS else result

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    # Comparisons give arrays of bools.
    def __lt__(self, other):
        return _compare("<", self, other)

    def __le__(self, other):
        return _compare("<=", self, other)

    def __gt__(self, other):
        return _compare(">", self, other)

    def __ge__(self, other):
        return _compare(">=", self, other)

    def __eq__(self, other):
        return _compare("==", self, other)

    def __ne__(self, other):
        return _compare("!=", self, other)

    # Operators and methods; each is one of the functions below.
    def __add__(self, other):
        return Add.apply(self, other)

    def __sub__(self, other):
        return Sub.apply(self, other)

    def __rsub__(self, other):
        return Sub.apply(other, self)

    def __mul__(self, other):
        return Mul.apply(self, other)

    def __truediv__(self, other):
        return Div.apply(self, other)

    def __rtruediv__(self, other):
        return Div.apply(other, self)

    def __pow__(self, other):
        return Pow.apply(self, other)

    def __rpow__(self, other):
        return Pow.apply(other, self)

    def __neg__(self):
        return Mul.apply(self, -1.0)

    def __matmul__(self, other):
        return matmul(self, other)

    def __rmatmul__(self, other):
        return matmul(other, self)

    def __getitem__(self, index):
        return Index.apply(self, index=index)

    def __abs__(self):
        return abs(self)

    __radd__ = __add__
    __rmul__ = __mul__

    # In-place operators: a new Tensor where a graph or a tape records them, else the array changes.
    def __iadd__(self, other):
        return self._in_place("+=", Add, np.add, other)

    def __isub__(self, other):
        return self._in_place("-=", Sub, np.subtract, other)

    def __imul__(self, other):
        return self._in_place("*=", Mul, np.multiply, other)

    def __itruediv__(self, other):
        return self._in_place("/=", Div, np.divide, other)

    def __setitem__(self, index, value):
        if _state.grad_enabled and self.requires_grad:
            raise self._needed_by_graph("[...] =", "use where, cat or pad instead")
        if _state.grad_enabled and isinstance(value, Tensor) and value.requires_grad:
            raise RuntimeError(
                f"[...] = with a Tensor that requires grad (shape {value.shape}) on its right: the "
                "graph would not record it; use where, cat or pad instead, or use y.detach()"
            )
        if _state.tape is not None:
            tensors = (self, value) if isinstance(value, Tensor) else (self,)
            _state.tape.escape("x[...] = y is not recorded; use where, cat or pad", *tensors)
        self.data[index] = as_array(value)
        self._version[0] += 1

    def _in_place(self, symbol, operation, ufunc, other):
        in_graph = _state.grad_enabled and (
            self.requires_grad or (isinstance(other, Tensor) and other.requires_grad)
        )
        if in_graph and self.requires_grad and self.function is None:
            raise self._needed_by_graph(symbol, "write x = x + y instead")
        tape = _state.tape
        if tape is not None and not in_graph and type(self) is not Tensor:
            tape.escape(f"{symbol} changes a {type(self).__name__} of the model")
            tape = None
        if in_graph or tape is not None:
            result = operation.apply(self, other).to(self.dtype)
            if result.shape != self.shape:
                raise ValueError(
                    f"{symbol}: a right side of shape {np.shape(as_array(other))} does not fit "
                    f"into {self.shape}"
                )
            if not in_graph:
                tape.changed(self)
            return result
        ufunc(self.data, as_array(other), out=self.data)
        self._version[0] += 1
        return self

    def _needed_by_graph(self, symbol, instead):
        kind = "a leaf" if self.function is None else f"the result of {self.function}"
        return RuntimeError(
            f"{symbol} on a Tensor that a graph needs ({kind} that requires grad, shape "
            f"{self.shape}): {instead}, or wrap the change in no_grad()"
        )

    def abs(self):
        return abs(self)

    def exp(self):
        return exp(self)

    def log(self):
        return log(self)

    def sqrt(self):
        return sqrt(self)

    def clamp(self, min=None, max=None):
        return clamp(self, min, max)

    def sum(self, dim=None, keepdim=False):
        return sum(self, dim, keepdim)

    def mean(self, dim=None, keepdim=False):
        return mean(self, dim, keepdim)

    def var(self, dim=None, *, correction=1, keepdim=False):
        return var(self, dim, correction=correction, keepdim=keepdim)

    def amax(self, dim=None, keepdim=False):
        return amax(self, dim, keepdim)

    def amin(self, dim=None, keepdim=False):
        return amin(self, dim, keepdim)

    def logsumexp(self, dim, keepdim=False):
        return logsumexp(self, dim, keepdim)

    def maximum(self, other):
        return maximum(self, other)

    def minimum(self, other):
        return minimum(self, other)

    def matmul(self, other):
        return matmul(self, other)

    def reshape(self, *shape):
        return reshape(self, _one_tuple(shape))

    def permute(self, *dims):
        return permute(self, _one_tuple(dims))

    def transpose(self, dim0, dim1):
        return transpose(self, dim0, dim1)

    def flip(self, *dims):
        return flip(self, _one_tuple(dims))

    def flatten(self, start_dim=0, end_dim=-1):
        return flatten(self, start_dim, end_dim)

    def broadcast_to(self, *shape):
        return broadcast_to(self, _one_tuple(shape))

    def to(self, dtype):
        """This tensor in another floating-point dtype (itself if it has it already)."""
        _check_dtype(dtype, "to")
        return self if self.dtype == dtype else Cast.apply(self, dtype=np.dtype(dtype))


_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def _as_floats(data, dtype, name):
    """An array of float32 or float64: of `dtype`, else of its own, else of float32."""
    if dtype is None and type(data) is np.ndarray and data.dtype in _FLOATS:
        return data
    if dtype is not None:
        _check_dtype(dtype, name)
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


def _check_dtype(dtype, name):
    if np.dtype(dtype) not in _FLOATS:
        raise TypeError(f"{name}: dtype must be float32 or float64, got {np.dtype(dtype)}")


def _loses_gradient(function):
    return RuntimeError(
        f"{function} has no gradient rule, and would take the values of a Tensor that requires "
        "grad out of the graph; use tinybnn's function of that name (where, clamp, exp, ...), or "
        "x.detach() or x.data where no gradient is wanted"
    )


class _InMemoryOrder:
    """Stands for an array in the state of an object: its copy has the axes in the same order.

    A pickle makes C-contiguous arrays of others, such as channels-last images.
    """

    def __init__(self, array):
        self.array = array

    def __deepcopy__(self, memo):
        return deepcopy(self.array, memo)  # in the same order; it may be shared

    def __reduce__(self):
        if self.array.flags.forc:
            return np.asarray, (self.array,)
        axes = np.argsort([-abs(stride) for stride in self.array.strides], kind="stable")
        in_order = np.ascontiguousarray(self.array.transpose(axes))
        return np.transpose, (in_order, np.argsort(axes).tolist())


def _one_tuple(arguments):
    """(2, 3) for both f(2, 3) and f((2, 3))."""
    if len(arguments) == 1 and not isinstance(arguments[0], int | np.integer):
        return tuple(arguments[0])
    return arguments


COMPARISONS = {  # operators and what NumPy calls them
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
    "==": np.equal, "!=": np.not_equal,
}  # fmt: skip


def _compare(operator, x, other):
    """An array of bools; inside `trace` a `Comparison`."""
    array = COMPARISONS[operator](as_array(x), as_array(other))
    return array if _state.tape is None else Comparison(array, operator, (x, other))


def as_array(x):
    """The array behind a Tensor; anything else unchanged. Its values are constants to a rule."""
    return x.data if isinstance(x, Tensor) else x


def plain(value):
    """NumPy's scalars as Python's numbers, whose products with float32 arrays stay float32.

    Lists and tuples become tuples of such numbers; anything else stays as it is.
    """
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


# -------------------------------------------------------------------------- elementwise operations


class Add(Function):
    saves = ()
    broadcasts = True

    def forward(self, a, b):
        return a + b

    def backward(self, grad, output, a, b):
        return grad, grad


class Sub(Function):
    saves = ()
    broadcasts = True

    def forward(self, a, b):
        return a - b

    def backward(self, grad, output, a, b):
        return grad, -grad if self.needs[1] else None


class Mul(Function):
    broadcasts = True

    def forward(self, a, b):
        return a * b

    def backward(self, grad, output, a, b):
        return (grad * b if self.needs[0] else None, grad * a if self.needs[1] else None)


class Div(Function):
    broadcasts = True

    def forward(self, a, b):
        return a / b

    def backward(self, grad, output, a, b):
        return (
            grad / b if self.needs[0] else None,
            -grad / b * (a / b) if self.needs[1] else None,  # b * b might overflow
        )


class Pow(Function):
    """x ** p. Where p is 0 the slope in x is 0; where x is 0 the slope in p is taken as 0."""

    broadcasts = True
    saves = ("inputs", "output")

    def forward(self, x, p):
        return x**p

    def backward(self, grad, output, x, p):
        grad_x = grad_p = None
        if self.needs[0]:  # p - 1, but 0 for p = 0, where 0 * x ** -1 would be NaN at x = 0
            lower = (p or 1.0) - 1.0 if np.isscalar(p) else where(as_array(p) == 0, 1.0, p) - 1.0
            grad_x = grad * p * x**lower
        if self.needs[1]:
            log_x = (
                float(np.log(x or 1.0)) if np.isscalar(x) else log(where(as_array(x) == 0, 1.0, x))
            )
            grad_p = grad * output * log_x
        return grad_x, grad_p


def _first_of_equals(ufunc, a, b):
    """np.maximum or np.minimum, and ``a`` where both are 0.

    Which of 0.0 and -0.0 they give is left open by NumPy, and depends on the CPU and on the array's
    size. A division tells them apart.
    """
    result = ufunc(a, b)
    ties = (result == 0) & (np.asarray(a) == 0)  # seldom: `exact.maximum` would make more passes
    return np.where(ties, a, result).astype(result.dtype) if np.any(ties) else result


def clip(x, low, high):
    """x limited to [low, high] (None: no limit); x itself where it equals a limit.

    Parameters
    ----------
    x : array of floats
    low, high : float or None
    """
    limits = (np.maximum, low), (np.minimum, high)
    zeros = [limit is not None and -1e-30 < limit < 1e-30 for _, limit in limits]  # in float32
    if not any(zeros):
        return np.clip(x, low, high)
    for (ufunc, limit), is_zero in zip(limits, zeros, strict=True):
        if limit is not None:
            x = _first_of_equals(ufunc, x, limit) if is_zero else ufunc(x, limit)
    return x


class Maximum(Function):
    """The larger of two, the first of equal ones (0.0 and -0.0); these share the gradient."""

    broadcasts = True

    def forward(self, a, b):
        return _first_of_equals(np.maximum, a, b)

    def backward(self, grad, output, a, b):
        a, b = as_array(a), as_array(b)
        share = (0.5 * ((a >= b) + 1.0 * (a > b))).astype(as_array(grad).dtype)  # 0, 1/2 or 1
        return grad * share, grad * (1.0 - share)


class Minimum(Maximum):
    """The smaller of two, the first of equal ones (0.0 and -0.0); these share the gradient."""

    def forward(self, a, b):
        return _first_of_equals(np.minimum, a, b)

    def backward(self, grad, output, a, b):
        return super().backward(grad, output, b, a)  # a wins where b is the larger one


class Exp(Function):
    saves = ("output",)

    def forward(self, x):
        return np.exp(x)

    def backward(self, grad, output, x):
        return grad * output


class Log(Function):
    def forward(self, x):
        return np.log(x)

    def backward(self, grad, output, x):
        return grad / x


class Sqrt(Function):
    saves = ("output",)

    def forward(self, x):
        return np.sqrt(x)

    def backward(self, grad, output, x):
        return grad * 0.5 / output


class Abs(Function):
    """|x|, with slope 0 at 0."""

    def forward(self, x):
        return np.abs(x)

    def backward(self, grad, output, x):
        return grad * np.sign(as_array(x))


class Clamp(Function):
    """Limit to [low, high]; the slope is 1 inside, borders included, and 0 outside."""

    def forward(self, x, low, high):
        self.low, self.high = low, high
        return clip(x, low, high)

    def backward(self, grad, output, x):
        values = as_array(x)
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        return grad * ((values >= low) & (values <= high))


class Compare(Function):
    """1 where a comparison holds, else 0: how `trace` records the condition of a `where`."""

    saves = ()
    broadcasts = True

    def forward(self, a, b, operator):
        return COMPARISONS[operator](a, b).astype(np.result_type(a, b, np.float32))

    def backward(self, grad, output, a, b):
        return None, None  # it has no gradient; nothing asks for one


class Where(Function):
    saves = ()
    broadcasts = True

    def forward(self, condition, a, b):
        self.condition = condition = np.asarray(condition, bool)
        if not (np.ndim(a) or np.ndim(b)):  # numbers must not decide the dtype
            return np.where(condition, a, b).astype(np.result_type(a, b, np.float32))
        return np.where(condition, a, b)

    def backward(self, grad, output, condition, a, b):
        return None, where(self.condition, grad, 0.0), where(self.condition, 0.0, grad)


class Cast(Function):
    saves = ()

    def forward(self, x, dtype):
        self.before = x.dtype
        return x.astype(dtype)

    def backward(self, grad, output, x):
        return grad.to(self.before) if isinstance(grad, Tensor) else grad.astype(self.before)


def exp(x):
    """e ** x."""
    return Exp.apply(x)


def log(x):
    """Natural logarithm."""
    return Log.apply(x)


def sqrt(x):
    """Square root."""
    return Sqrt.apply(x)


def abs(x):
    """Absolute value; slope 0 at 0."""
    return Abs.apply(x)


def maximum(a, b):
    """The larger of two, element by element; equal ones share the gradient evenly."""
    return Maximum.apply(a, b)


def minimum(a, b):
    """The smaller of two, element by element; equal ones share the gradient evenly."""
    return Minimum.apply(a, b)


def clamp(x, min=None, max=None):
    """Limit to [min, max]; the slope is 1 inside, borders included, 0 outside."""
    if min is None and max is None:
        raise ValueError("clamp: give min, max or both")
    min, max = (v.item() if isinstance(v, np.generic) else v for v in (min, max))
    return Clamp.apply(x, low=min, high=max)


def where(condition, a, b):
    """Elements of `a` where `condition` (boolean array) holds, of `b` elsewhere."""
    if isinstance(condition, Comparison):
        condition = condition.recorded()
    elif not isinstance(condition, Tensor):
        condition = np.asarray(condition, dtype=bool)
    return Where.apply(condition, a, b)


# ------------------------------------------------------------------------------------- reductions


def _dims(dim, ndim):
    """`dim` (None, int or tuple; negative counts from the end) as a tuple of axes."""
    if dim is None:
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int | np.integer) else tuple(dim)
    for d in dims:
        if not -ndim <= d < ndim:
            raise ValueError(f"dim {d} is out of range for a tensor of {ndim} dimensions")
    dims = tuple(int(d) % ndim for d in dims)
    if len(set(dims)) != len(dims):
        raise ValueError(f"dim {dim} names an axis twice")
    return dims


class Sum(Function):
    saves = ()

    def forward(self, x, dim, keepdim):
        self.kept = tuple(1 if i in dim else n for i, n in enumerate(x.shape))
        return x.sum(axis=dim, keepdims=keepdim)

    def backward(self, grad, output, x):
        return broadcast_to(reshape(grad, self.kept), self.shapes[0])


class SumPixels(Sum):
    """Sum over axes behind the channels, one pixel after the other in row-major order, from 0.0.

    So the result does not depend on the order in memory, and a packed model has the same.
    """

    def forward(self, x, dim, keepdim):
        self.kept = tuple(1 if i in dim else n for i, n in enumerate(x.shape))
        pixels = np.moveaxis(x, sorted(dim), range(len(dim)))
        sizes, shape = pixels.shape[: len(dim)], pixels.shape[len(dim) :]
        if math.prod(sizes) <= math.prod(shape):
            total = np.zeros(shape, x.dtype)
            for place in np.ndindex(sizes):
                total += pixels[place]
        else:  # few numbers in each pixel
            rows = pixels.reshape(-1, *shape)
            total = np.add.accumulate(rows, axis=0)[-1] + x.dtype.type(0)
        return total.reshape(self.kept) if keepdim else total


class Amax(Function):
    """Maximum, the first of equal ones (0.0 and -0.0); these share the gradient evenly."""

    saves = ("inputs", "output")
    reduce = np.maximum.reduce

    def forward(self, x, dim, keepdim):
        self.dim = dim
        self.kept = tuple(1 if i in dim else n for i, n in enumerate(x.shape))
        result = self.reduce(x, axis=dim, keepdims=True)
        if np.any(result == 0):  # NumPy leaves open which zero it gives
            ends = range(-len(dim), 0)
            rows = np.moveaxis(x, sorted(dim), ends).reshape(*result.squeeze(dim).shape, -1)
            first = np.argmax(rows == 0, axis=-1)[..., None]
            zeros = np.take_along_axis(rows, first, -1).reshape(result.shape)
            result = np.where(result == 0, zeros, result)
        return result if keepdim else result.squeeze(dim)[()]

    def backward(self, grad, output, x):
        values = as_array(x)
        ties = values == as_array(output).reshape(self.kept)
        share = ties / ties.sum(axis=self.dim, keepdims=True).astype(values.dtype)
        return reshape(grad, self.kept) * share


class Amin(Amax):
    """Minimum, the first of equal ones (0.0 and -0.0); these share the gradient evenly."""

    reduce = np.minimum.reduce


class LogSumExp(Function):
    """log(sum(exp(x))), without overflow; its gradient is the softmax."""

    saves = ("inputs", "output")

    def forward(self, x, dim, keepdim):
        self.kept = tuple(1 if i in dim else n for i, n in enumerate(x.shape))
        largest = x.max(axis=dim, keepdims=True)
        shift = np.where(np.isfinite(largest), largest, x.dtype.type(0))
        with np.errstate(divide="ignore", over="ignore"):  # all -inf: log(0); or one is +inf
            result = np.log(np.exp(x - shift).sum(axis=dim, keepdims=True)) + shift
        return result if keepdim else result.squeeze(dim)

    def backward(self, grad, output, x):
        output = reshape(output, self.kept)
        output = where(np.isfinite(as_array(output)), output, 0.0)  # -inf - -inf would be NaN
        return reshape(grad, self.kept) * exp(x - output)


def sum(x, dim=None, keepdim=False):
    """Sum over the axes `dim` (all of them by default).

    Over axes of pixels, behind samples and channels, numbers are added in row-major order.
    """
    dims = _dims(dim, np.ndim(as_array(x)))
    of_pixels = bool(dims) and all(d >= 2 for d in dims)
    return (SumPixels if of_pixels else Sum).apply(x, dim=dims, keepdim=bool(keepdim))


def mean(x, dim=None, keepdim=False):
    """Mean over the axes `dim` (all of them by default)."""
    shape = np.shape(as_array(x))
    count = int(np.prod([shape[d] for d in _dims(dim, len(shape))]))
    if count == 0:
        raise ValueError(f"mean: no elements along dim {dim} of shape {shape}")
    return sum(x, dim, keepdim) * (1.0 / count)


def var(x, dim=None, *, correction=1, keepdim=False):
    """Variance over the axes `dim`; `correction` is subtracted from the number of elements."""
    shape = np.shape(as_array(x))
    count = int(np.prod([shape[d] for d in _dims(dim, len(shape))]))
    if count <= correction:
        raise ValueError(f"var: {count} elements with correction={correction} leave none to divide")
    centred = x - mean(x, dim, keepdim=True)
    return sum(centred * centred, dim, keepdim) * (1.0 / (count - correction))


def amax(x, dim=None, keepdim=False):
    """Maximum over the axes `dim`; equal maxima share the gradient evenly."""
    return Amax.apply(x, dim=_dims(dim, np.ndim(as_array(x))), keepdim=bool(keepdim))


def amin(x, dim=None, keepdim=False):
    """Minimum over the axes `dim`; equal minima share the gradient evenly."""
    return Amin.apply(x, dim=_dims(dim, np.ndim(as_array(x))), keepdim=bool(keepdim))


def logsumexp(x, dim, keepdim=False):
    """log(sum(exp(x))) over the axes `dim`, without overflow."""
    return LogSumExp.apply(x, dim=_dims(dim, np.ndim(as_array(x))), keepdim=bool(keepdim))


# --------------------------------------------------------------------------------- matrix product


class MatMul(Function):
    """Product of (stacks of) matrices: (..., M, K) @ (..., K, N) -> (..., M, N)."""

    broadcasts = True  # the leading axes

    def forward(self, a, b):
        return a @ b

    def backward(self, grad, output, a, b):
        return (
            grad @ transpose(b, -2, -1) if self.needs[0] else None,
            transpose(a, -2, -1) @ grad if self.needs[1] else None,
        )


def matmul(a, b):
    """Matrix product with PyTorch's meaning for vectors, matrices and stacks of matrices."""
    shape_a, shape_b = np.shape(as_array(a)), np.shape(as_array(b))
    if not shape_a or not shape_b:
        raise ValueError(f"matmul: needs at least one axis, got shapes {shape_a} and {shape_b}")
    inner = shape_b[0] if len(shape_b) == 1 else shape_b[-2]
    if shape_a[-1] != inner:
        raise ValueError(f"matmul: inner sizes differ in shapes {shape_a} and {shape_b}")
    rows = reshape(a, (1, *shape_a)) if len(shape_a) == 1 else a
    columns = reshape(b, (*shape_b, 1)) if len(shape_b) == 1 else b
    product = MatMul.apply(rows, columns)
    shape = list(np.shape(as_array(product)))
    if len(shape_b) == 1:
        del shape[-1]
    if len(shape_a) == 1:
        del shape[-1 if len(shape_b) == 1 else -2]
    return product if len(shape) == np.ndim(product) else reshape(product, tuple(shape))


# ------------------------------------------------------------------------------- shape operations


class Reshape(Function):
    saves = ()
    views = True

    def forward(self, x, shape):
        return x.reshape(shape)

    def backward(self, grad, output, x):
        return reshape(grad, self.shapes[0])


class Permute(Function):
    saves = ()
    views = True

    def forward(self, x, dims):
        self.inverse = tuple(int(i) for i in np.argsort(dims))
        return x.transpose(dims)

    def backward(self, grad, output, x):
        return permute(grad, self.inverse)


class Flip(Function):
    saves = ()
    views = True

    def forward(self, x, dims):
        self.dims = dims
        return np.flip(x, dims)

    def backward(self, grad, output, x):
        return flip(grad, self.dims)


class BroadcastTo(Function):
    saves = ()
    views = True
    broadcasts = True

    def forward(self, x, shape):
        return np.broadcast_to(x, shape)

    def backward(self, grad, output, x):
        return grad


class Index(Function):
    """x[index], for slices, integers, integer arrays and boolean masks."""

    saves = ()
    views = True

    def forward(self, x, index):
        self.index = index
        return x[index]

    def backward(self, grad, output, x):
        return IndexAdd.apply(grad, index=self.index, shape=self.shapes[0])


class IndexAdd(Function):
    """Zeros of `shape` with `x` added at `index`; elements named twice receive both."""

    saves = ()

    def forward(self, x, index, shape):
        self.index = index
        result = np.zeros(shape, x.dtype)
        parts = index if isinstance(index, tuple) else (index,)
        basic = (int, np.integer, slice, type(None), type(...))
        if any(not isinstance(part, basic) for part in parts):
            np.add.at(result, index, x)
        else:  # no element is named twice; 50 times faster
            result[index] = x
        return result

    def backward(self, grad, output, x):
        return Index.apply(grad, index=self.index)


class Pad(Function):
    saves = ()

    def forward(self, x, widths, value):
        self.inside = tuple(
            slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True)
        )
        shape = tuple(b + n + a for (b, a), n in zip(widths, x.shape, strict=True))
        result = np.full_like(x, value, shape=shape)  # in x's order in memory, unlike np.pad
        result[self.inside] = x
        return result

    def backward(self, grad, output, x):
        return grad[self.inside]


class Cat(Function):
    saves = ()

    def forward(self, *arrays, dim):
        self.dim = dim
        self.ends = np.cumsum([a.shape[dim] for a in arrays])
        return np.concatenate(arrays, dim)

    def backward(self, grad, output, *inputs):
        before = (slice(None),) * self.dim
        starts = (0, *self.ends[:-1])
        return tuple(
            grad[(*before, slice(int(start), int(end)))]
            for start, end in zip(starts, self.ends, strict=True)
        )


def reshape(x, shape):
    """The same elements in row-major order under another shape; one size may be -1."""
    try:
        return Reshape.apply(x, shape=tuple(shape))
    except ValueError:
        raise ValueError(
            f"reshape: {np.shape(as_array(x))} does not fit into {tuple(shape)}"
        ) from None


def permute(x, dims):
    """Reorder the axes."""
    ndim = np.ndim(as_array(x))
    dims = tuple(dims)
    if len(dims) != ndim or sorted(_dims(dims, ndim)) != list(range(ndim)):
        raise ValueError(f"permute: {dims} does not name each of the {ndim} axes once")
    return Permute.apply(x, dims=_dims(dims, ndim))


def transpose(x, dim0, dim1):
    """Swap two axes."""
    ndim = np.ndim(as_array(x))
    (dim0,), (dim1,) = _dims(dim0, ndim), _dims(dim1, ndim)
    dims = list(range(ndim))
    dims[dim0], dims[dim1] = dim1, dim0
    return Permute.apply(x, dims=tuple(dims))


def flip(x, dims):
    """Reverse the order of elements along the axes `dims`."""
    return Flip.apply(x, dims=_dims(dims, np.ndim(as_array(x))))


def flatten(x, start_dim=0, end_dim=-1):
    """Merge the axes start_dim to end_dim into one."""
    shape = np.shape(as_array(x))
    (start,), (end,) = _dims(start_dim, len(shape)), _dims(end_dim, len(shape))
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} lies behind end_dim {end_dim}")
    merged = int(np.prod(shape[start : end + 1]))
    return reshape(x, (*shape[:start], merged, *shape[end + 1 :]))


def broadcast_to(x, shape):
    """Repeat along axes of size 1, and new leading axes, to reach `shape`."""
    return BroadcastTo.apply(x, shape=tuple(shape))


def pad(x, pad, value=0.0):
    """Add a border of `value`.

    Parameters
    ----------
    pad : sequence of int
        PyTorch's order: (before, after) of the last axis, then of the one before it, and so on.
    """
    ndim = np.ndim(as_array(x))
    pad = tuple(int(p) for p in pad)
    if len(pad) % 2 or len(pad) > 2 * ndim or any(p < 0 for p in pad):
        raise ValueError(
            f"pad: expects pairs of sizes >= 0 for at most {ndim} axes, last axis first, got {pad}"
        )
    pairs = [pad[i : i + 2] for i in range(0, len(pad), 2)]
    widths = ((0, 0),) * (ndim - len(pairs)) + tuple(reversed(pairs))
    return Pad.apply(x, widths=widths, value=value)


def cat(tensors, dim=0):
    """Join along an existing axis."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("cat: expects at least one tensor, got none")
    (dim,) = _dims(dim, np.ndim(as_array(tensors[0])))
    shapes = [np.shape(as_array(t)) for t in tensors]
    if len({(*s[:dim], *s[dim + 1 :]) for s in shapes}) != 1:
        raise ValueError(f"cat: shapes {shapes} differ outside of dim {dim}")
    return Cat.apply(*tensors, dim=dim)


def stack(tensors, dim=0):
    """Join along a new axis."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("stack: expects at least one tensor, got none")
    shapes = [np.shape(as_array(t)) for t in tensors]
    if len(set(shapes)) != 1:
        raise ValueError(f"stack: expects equal shapes, got {shapes}")
    (dim,) = _dims(dim, len(shapes[0]) + 1)
    new = (*shapes[0][:dim], 1, *shapes[0][dim:])
    return cat([reshape(t, new) for t in tensors], dim)


# ------------------------------------------------------------------------------ NumPy's functions

# What stands for an elementwise function of NumPy that is called with a Tensor.
OF_NUMPY = {
    np.add: Add.apply, np.subtract: Sub.apply, np.multiply: Mul.apply, np.divide: Div.apply,
    np.power: Pow.apply, np.negative: lambda x: -x, np.absolute: abs, np.square: lambda x: x * x,
    np.exp: exp, np.log: log, np.sqrt: sqrt, np.maximum: maximum, np.minimum: minimum,
    np.matmul: matmul,
    **{ufunc: functools.partial(_compare, symbol) for symbol, ufunc in COMPARISONS.items()},
}  # fmt: skip
