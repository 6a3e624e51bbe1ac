"""The Tensor: a Variable with operators and methods, PyTorch's names."""

from __future__ import annotations

import functools
from copy import deepcopy

import numpy as np

import tinybnn.autograd.operations as operations
import tinybnn.autograd.shapes as shapes
import tinybnn.autograd.sorting as sorting
from tinybnn.autograd.engine import FLOATS, Variable, as_array, check_dtype, class_of_results, state
from tinybnn.autograd.instead import INSTEAD
from tinybnn.autograd.operations import OF_NUMPY, Add, Cast, Div, Index, Mul, Pow, Sub, compare


def _reduction(operation, of_numpy=None):
    """A method that NumPy's function of that name may call too, with the arguments it has."""

    @functools.wraps(operation)
    def method(self, dim=None, keepdim=False, **options):
        if "axis" not in options:
            return operation(self, dim, keepdim=keepdim, **options)
        for name in ("out", "dtype"):
            if options.pop(name, None) is not None:
                raise TypeError(f"{operation.__name__}: a Tensor takes no {name}")
        names = {"axis": "dim", "keepdims": "keepdim", "ddof": "correction"}
        options = {names.get(name, name): value for name, value in options.items()}
        return (of_numpy or operation)(self, **options)

    return method


@class_of_results
class Tensor(Variable):
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
    A Tensor holds floats. Integers and bools are NumPy arrays, which have no gradient:
    comparisons (``x > 0``), `argmax`, the indices of `sort`, ``arange(3)``.

    ``x += y`` (and -=, *=, /=) makes a new Tensor x + y and binds the name to it where a graph
    records x or y, and inside `trace`; a second name for the old Tensor keeps the old values. Under
    `no_grad`, or where nothing requires grad, it changes the array itself. A leaf that requires
    grad is changed under `no_grad` only.

    An array that meets a Tensor gives a Tensor, in NumPy's functions too (``np.exp(x)``, ``array
    += x``). A NumPy function without a gradient rule takes the values where no graph records them,
    and is an error where a gradient would be lost.

    Examples
    --------
    >>> from tinybnn import Tensor, no_grad
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

    __slots__ = ()
    __hash__ = object.__hash__  # by identity, although == compares elements

    T = property(lambda self: operations.transpose(self, -2, -1))
    grad_fn = property(lambda self: self.function)  # PyTorch's name of it
    device = property(lambda self: "cpu")

    def __getattr__(self, name):
        """Nothing is found: say what is used instead of a name that PyTorch has."""
        instead = f"; use {INSTEAD[name]}" if name in INSTEAD else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{instead}")

    def numel(self):
        """Number of elements."""
        return self.data.size

    def dim(self):
        """Number of axes: `ndim`."""
        return self.ndim

    def size(self, dim=None):
        """The `shape`, or the size of one axis."""
        return self.shape if dim is None else self.shape[operations._dims(dim, self.ndim)[0]]

    def tolist(self):
        """The values as Python numbers in nested lists."""
        self._leaves_tape("tolist()")
        return self.data.tolist()

    def requires_grad_(self, requires_grad=True):
        """Let this leaf take a gradient, or not; returns the tensor."""
        if self.function is not None and not requires_grad:
            raise RuntimeError(
                f"requires_grad_: the result of {self.function} requires grad as its inputs do; "
                "use x.detach()"
            )
        self.requires_grad = bool(requires_grad)
        return self

    def numpy(self):
        """The array itself (shared memory, no copy)."""
        self._leaves_tape("numpy()")
        return self.data

    def _leaves_tape(self, way):
        """Note inside `trace` that what is made of this tensor's values is not recorded."""
        if state.tape is not None:
            state.tape.escape(
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
            extra += f", grad_fn=<{self.function}>"
        elif self.requires_grad:
            extra += ", requires_grad=True"
        return f"Tensor({body}{extra})"

    def __format__(self, specification):
        if self.ndim == 0 and specification:
            return format(self.data.item(), specification)
        return object.__format__(self, specification)

    def __len__(self):
        return len(self.data)

    def __bool__(self):
        self._leaves_tape("an if or bool()")
        return bool(self.data)

    def __float__(self):
        return float(self.item())

    def __array__(self, dtype=None, copy=None):
        if state.grad_enabled and self.requires_grad:
            raise _loses_gradient("a NumPy function")
        self._leaves_tape("a NumPy function")
        return np.array(self.data, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        """What NumPy's elementwise functions and ``array * tensor`` do with a Tensor."""
        if out is not None and any([isinstance(x, Tensor) for x in out]):
            raise TypeError(
                f"np.{ufunc.__name__}: out must be an array, got a Tensor; write "
                f"y = np.{ufunc.__name__}(...) without out"
            )
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        recorded = state.grad_enabled and any([x.requires_grad for x in tensors])
        operation = OF_NUMPY.get(ufunc) if method == "__call__" and not options else None
        if operation and (out is None or recorded or state.tape is not None):
            return operation(*inputs)  # after `array += tensor` the name is that of a Tensor
        if recorded:
            raise _loses_gradient(f"np.{ufunc.__name__}")
        for x in tensors:
            x._leaves_tape(f"np.{ufunc.__name__}")
        if out is not None:
            options["out"] = out
        result = getattr(ufunc, method)(*map(as_array, inputs), **options)
        return Tensor(result) if getattr(result, "dtype", None) in FLOATS else result

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    # Comparisons give arrays of bools.
    def __lt__(self, other):
        return compare("<", self, other)

    def __le__(self, other):
        return compare("<=", self, other)

    def __gt__(self, other):
        return compare(">", self, other)

    def __ge__(self, other):
        return compare(">=", self, other)

    def __eq__(self, other):
        return compare("==", self, other)

    def __ne__(self, other):
        return compare("!=", self, other)

    # Operators; each is one of the operations.
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
        return operations.matmul(self, other)

    def __rmatmul__(self, other):
        return operations.matmul(other, self)

    def __getitem__(self, index):
        return Index.apply(self, index=index)

    def __abs__(self):
        return operations.abs(self)

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
        if state.grad_enabled and self.requires_grad:
            raise self._needed_by_graph("[...] =", "use where, cat or pad instead")
        if state.grad_enabled and isinstance(value, Tensor) and value.requires_grad:
            raise RuntimeError(
                f"[...] = with a Tensor that requires grad (shape {value.shape}) on its right: the "
                "graph would not record it; use where, cat or pad instead, or use y.detach()"
            )
        if state.tape is not None:
            tensors = (self, value) if isinstance(value, Tensor) else (self,)
            state.tape.escape("x[...] = y is not recorded; use where, cat or pad", *tensors)
        self.data[index] = as_array(value)
        self._version[0] += 1

    def _in_place(self, symbol, operation, ufunc, other):
        in_graph = state.grad_enabled and (
            self.requires_grad or (isinstance(other, Tensor) and other.requires_grad)
        )
        if in_graph and self.requires_grad and self.function is None:
            raise self._needed_by_graph(symbol, "write x = x + y instead")
        tape = state.tape
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

    # In-place methods: they change the array, where no graph needs it, and return this tensor.
    def copy_(self, other):
        """Take over the values of another tensor or array."""
        return self._set("copy_()", as_array(other), "use the other tensor itself", other)

    def fill_(self, value):
        """Set all elements to a number."""
        return self._set("fill_()", value, "use full_like(x, value)")

    def zero_(self):
        """Set all elements to 0."""
        return self._set("zero_()", 0.0, "use zeros_like(x)")

    def clamp_(self, min=None, max=None):
        """Limit to [min, max]."""
        limited = operations.clamp(self.data, min, max)
        return self._set("clamp_()", limited, "write x = x.clamp(...)")

    def masked_fill_(self, mask, value):
        """Set the elements where a bool array holds to a number."""
        filled = np.where(mask, value, self.data)
        return self._set("masked_fill_()", filled, "write x = x.masked_fill(...)")

    def add_(self, other, *, alpha=1):
        """Add ``alpha * other``."""
        values = self.data + alpha * as_array(other)
        return self._set("add_()", values, "write x = x + y", other)

    def sub_(self, other, *, alpha=1):
        """Subtract ``alpha * other``."""
        values = self.data - alpha * as_array(other)
        return self._set("sub_()", values, "write x = x - y", other)

    def mul_(self, other):
        """Multiply by another tensor, array or number."""
        return self._set("mul_()", self.data * as_array(other), "write x = x * y", other)

    def div_(self, other):
        """Divide by another tensor, array or number."""
        return self._set("div_()", self.data / as_array(other), "write x = x / y", other)

    def _set(self, name, values, instead, *others):
        others = [x for x in others if isinstance(x, Variable)]
        if state.grad_enabled and any([x.requires_grad for x in (self, *others)]):
            raise self._needed_by_graph(name, instead)
        if state.tape is not None:
            state.tape.escape(f"x.{name} is not recorded; {instead}", self, *others)
        self.data[...] = values
        self._version[0] += 1
        return self

    def _needed_by_graph(self, symbol, instead):
        kind = "a leaf" if self.function is None else f"the result of {self.function}"
        return RuntimeError(
            f"{symbol} on a Tensor that a graph needs ({kind} that requires grad, shape "
            f"{self.shape}): {instead}, or wrap the change in no_grad()"
        )

    # Functions of a Tensor, as methods.
    abs, exp, log, sqrt = operations.abs, operations.exp, operations.log, operations.sqrt
    sin, cos, sign, pow = operations.sin, operations.cos, operations.sign, operations.pow
    clamp, maximum, minimum = operations.clamp, operations.maximum, operations.minimum
    sum, mean = _reduction(operations.sum), _reduction(operations.mean)
    var, std = _reduction(operations.var), _reduction(operations.std)
    max = _reduction(sorting.max, operations.amax)
    min = _reduction(sorting.min, operations.amin)
    amax, amin, logsumexp = operations.amax, operations.amin, operations.logsumexp
    matmul, transpose, flatten = operations.matmul, operations.transpose, operations.flatten
    argmax, argmin, gather = sorting.argmax, sorting.argmin, sorting.gather
    sort, argsort, topk = sorting.sort, sorting.argsort, sorting.topk
    unsqueeze, clone, split, chunk = shapes.unsqueeze, shapes.clone, shapes.split, shapes.chunk
    add, sub, mul, div, neg = __add__, __sub__, __mul__, __truediv__, __neg__
    mm, norm = __matmul__, operations.norm
    lt, le, gt, ge, eq, ne = __lt__, __le__, __gt__, __ge__, __eq__, __ne__

    def squeeze(self, dim=None, *, axis=None):
        """Leave out axes of size 1, see `shapes.squeeze`; `axis` is NumPy's name of `dim`."""
        return shapes.squeeze(self, dim if axis is None else axis)

    def masked_fill(self, mask, value):
        """A number where a bool array holds, the element elsewhere."""
        return operations.where(mask, value, self)

    def t(self):
        """A matrix with its axes swapped."""
        return self if self.ndim < 2 else self.transpose(0, 1)

    def view_as(self, other):
        """The elements in the shape of another tensor."""
        return self.view(other.shape)

    def expand_as(self, other):
        """Repeat along axes of size 1 to the shape of another tensor."""
        return self.expand(other.shape)

    def contiguous(self):
        """This tensor: `view` takes one of any order in memory."""
        return self

    def reshape(self, *shape):
        return operations.reshape(self, one_tuple(shape))

    view = reshape

    def expand(self, *sizes):
        """Repeat along axes of size 1, see `shapes.expand`."""
        return shapes.expand(self, one_tuple(sizes))

    def repeat(self, *sizes):
        """Repeat the whole tensor along its axes, see `shapes.repeat`."""
        return shapes.repeat(self, one_tuple(sizes))

    def permute(self, *dims):
        return operations.permute(self, one_tuple(dims))

    def flip(self, *dims):
        return operations.flip(self, one_tuple(dims))

    def broadcast_to(self, *shape):
        return operations.broadcast_to(self, one_tuple(shape))

    def to(self, *target, dtype=None, device=None):
        """This tensor in another floating-point dtype (itself if it has it already).

        Parameters
        ----------
        target : dtype, "cpu" or Tensor, whose dtype is taken
        dtype, device : optional
            The same by name.
        """
        dtype = as_dtype("to", target, dtype, device)
        if dtype is None or self.dtype == dtype:
            return self
        return Cast.apply(self, dtype=np.dtype(dtype))

    def cpu(self):
        """This tensor: it is on the CPU."""
        return self

    def float(self):
        """This tensor in float32."""
        return self.to(np.float32)

    def double(self):
        """This tensor in float64."""
        return self.to(np.float64)


def check_device(name, device):
    """Raise a ValueError that begins with `name` for another device than the CPU (or None)."""
    if device is not None and str(device).split(":")[0] != "cpu":
        raise ValueError(f"{name}: tinybnn runs on the CPU, got {device!r}; leave the device out")


def as_dtype(name, target, dtype=None, device=None):
    """What the arguments of a method ``to`` ask for: float32, float64 or None for none."""
    for x in target:
        try:
            dtype = x.dtype if isinstance(x, Variable) else np.dtype(x)
        except TypeError:  # it is none
            device = x
    check_device(name, device)
    if dtype is not None:
        check_dtype(dtype, name)
    return dtype


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


def one_tuple(arguments):
    """(2, 3) for both f(2, 3) and f((2, 3))."""
    if len(arguments) == 1 and not isinstance(arguments[0], int | np.integer):
        return tuple(arguments[0])
    return arguments
