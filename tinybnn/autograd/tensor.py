"""The Tensor: a Variable with operators and methods, PyTorch's names."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import tinybnn.autograd.backward as backward_pass
import tinybnn.autograd.operations as operations
import tinybnn.autograd.shapes as shapes
import tinybnn.autograd.sorting as sorting
from tinybnn.autograd.engine import Variable, as_array, class_of_results, state
from tinybnn.autograd.floats import FLOATS, check_dtype
from tinybnn.autograd.instead import INSTEAD
from tinybnn.autograd.operations import OF_NUMPY, Add, Cast, Div, Index, Mul, Pow, Sub, compare

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Self

    from tinybnn.autograd.engine import Function
    from tinybnn.typing import Array, Dims, FloatArray, TensorLike


@class_of_results
class Tensor(Variable):
    """An n-dimensional array of floats that takes part in automatic differentiation.

    Parameters
    ----------
    data : array_like or Tensor, of any shape
        A floating-point array keeps its dtype and its memory (no copy); anything else becomes
        float32.
    requires_grad : bool
        Whether operations on this tensor are recorded, so that `backward` reaches it.
    dtype : numpy dtype, optional
        float32 or float64; converts the data.

    Raises
    ------
    TypeError
        If the data are not integers, bools, float32 or float64.

    Attributes
    ----------
    data : numpy.ndarray
        The values, float32 or float64. An assigned value is converted as by the constructor, even
        a Tensor: ``p.data = p.data - lr * p.grad`` and ``p.data -= lr * p.grad`` update by hand.
    grad : Tensor of this shape, or None
        Sum of the gradients that `backward` has added since it was None; on leaves only.
    function : Function or None
        The operation that computed this tensor; None for a leaf.

    Notes
    -----
    A Tensor holds floats. Integers and bools are NumPy arrays, which have no gradient:
    comparisons (``x > 0``), `argmax`, the indices of `sort`, ``arange(3)``.

    ``x += y`` (and -=, *=, /=) binds the name to a new Tensor x + y where a graph records x or y,
    and inside `trace`; other names of the old Tensor keep its values. Under `no_grad`, or where
    nothing requires grad, it changes the array in place. A leaf that requires grad can be changed
    under `no_grad` only.

    An operation on an array and a Tensor returns a Tensor, also in NumPy's functions
    (``np.exp(x)``, ``array += x``). A NumPy function without a gradient rule is applied to the
    values where no graph records them; where a gradient would be lost, it raises an error.

    Methods without text of their own are the functions of that name, applied to this tensor.

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
    __hash__: Final = object.__hash__  # by identity, although == compares elements
    requires_grad: bool

    @property
    def T(self) -> Tensor:  # noqa: N802
        """The last two axes swapped: (..., M, N) becomes (..., N, M)."""
        return operations.transpose(self, -2, -1)

    @property
    def grad_fn(self) -> Function | None:
        """PyTorch's name of `function`."""
        return self.function

    @property
    def device(self) -> str:
        """Always "cpu"."""
        return "cpu"

    if not TYPE_CHECKING:  # else every name would pass for an attribute

        def __getattr__(self, name):
            """Explain a missing attribute: for names of PyTorch's, what to use instead."""
            instead = f"; use {INSTEAD[name]}" if name in INSTEAD else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{instead}")

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
        backward_pass.backward(self, gradient, retain_graph, create_graph)

    def numel(self) -> int:
        """Return the number of elements."""
        return self.data.size

    def dim(self) -> int:
        """Return the number of axes, `ndim`."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """Return the `shape`, or the size of one axis."""
        if dim is None:
            return self.shape
        return self.shape[operations.normalized_dims(dim, self.ndim)[0]]

    def tolist(self) -> Any:
        """Return the values as Python numbers in nested lists."""
        self._leaves_tape("tolist()")
        return self.data.tolist()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set whether this leaf takes a gradient, and return it."""
        if self.function is not None and not requires_grad:
            raise RuntimeError(
                f"requires_grad_: the result of {self.function} requires grad as its inputs do; "
                "use x.detach()"
            )
        self.requires_grad = bool(requires_grad)
        return self

    def numpy(self) -> FloatArray:
        """Return the array itself, of this shape and dtype (shared memory, no copy)."""
        self._leaves_tape("numpy()")
        return self.data

    def _leaves_tape(self, way):
        """Note inside `trace` that computations on this tensor's values are not recorded."""
        if state.tape is not None:
            state.tape.escape(
                f"{way} takes values of the input out of the model, and results computed from "
                "them would be fixed; use operations on Tensors, or skip it unless self.training",
                self,
            )

    def item(self) -> builtins.float:
        """Return the value of a tensor with one element as a Python float."""
        self._leaves_tape("item() or float()")
        if self.data.size != 1:
            raise ValueError(f"item: the tensor has {self.data.size} elements (shape {self.shape})")
        return self.data.item()

    # Copies. As in PyTorch, only a leaf can be deep-copied: other results belong to a graph.
    def __copy__(self) -> Self:
        """Return another Tensor on the same memory, at the same place in the graph."""
        other = type(self).__new__(type(self))
        attributes, slots = super().__reduce_ex__(2)[2]
        for name, value in {**(attributes or {}), **slots}.items():
            setattr(other, name, value)  # shares the counter of in-place changes, like the memory
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.function is not None:
            raise RuntimeError(
                f"Tensor: the result of {self.function} (shape {self.shape}) belongs to a graph "
                "and cannot be copied or pickled; use .detach() first"
            )
        constructor, arguments, (attributes, slots), *rest = super().__reduce_ex__(protocol)
        slots["_data"] = _InMemoryOrder(self.data)
        return constructor, arguments, (attributes, slots), *rest

    def __repr__(self) -> str:
        body = np.array2string(self.data, separator=", ", prefix="Tensor(")
        extra = ", dtype=float64" if self.dtype == np.float64 else ""
        if self.function is not None:
            extra += f", grad_fn=<{self.function}>"
        elif self.requires_grad:
            extra += ", requires_grad=True"
        return f"Tensor({body}{extra})"

    def __format__(self, specification: str) -> str:
        if self.ndim == 0 and specification:
            return format(self.data.item(), specification)
        return object.__format__(self, specification)

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        self._leaves_tape("an if or bool()")
        return bool(self.data)

    def __float__(self) -> builtins.float:
        return float(self.item())

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        if state.grad_enabled and self.requires_grad:
            raise _loses_gradient("a NumPy function")
        self._leaves_tape("a NumPy function")
        return np.array(self.data, dtype=dtype, copy=copy)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Any:
        """Implement NumPy's elementwise functions, and ``array * tensor``, for Tensors."""
        if out is not None and any([isinstance(x, Tensor) for x in out]):
            raise TypeError(
                f"np.{ufunc.__name__}: out must be an array, got a Tensor; write "
                f"y = np.{ufunc.__name__}(...) without out"
            )
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        recorded = state.grad_enabled and any([x.requires_grad for x in tensors])
        operation = OF_NUMPY.get(ufunc) if method == "__call__" and not options else None
        if operation and (out is None or recorded or state.tape is not None):
            return operation(*inputs)  # so `array += tensor` binds the name to a Tensor
        if recorded:
            raise _loses_gradient(f"np.{ufunc.__name__}")
        for x in tensors:
            x._leaves_tape(f"np.{ufunc.__name__}")
        if out is not None:
            options["out"] = out
        result = getattr(ufunc, method)(*map(as_array, inputs), **options)
        return Tensor(result) if getattr(result, "dtype", None) in FLOATS else result

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    # Comparisons return arrays of bools; inside `trace`, a `Comparison`.
    def __lt__(self, other: TensorLike) -> NDArray[np.bool_]:
        return compare("<", self, other)

    def __le__(self, other: TensorLike) -> NDArray[np.bool_]:
        return compare("<=", self, other)

    def __gt__(self, other: TensorLike) -> NDArray[np.bool_]:
        return compare(">", self, other)

    def __ge__(self, other: TensorLike) -> NDArray[np.bool_]:
        return compare(">=", self, other)

    def __eq__(self, other: TensorLike) -> NDArray[np.bool_]:
        return compare("==", self, other)

    def __ne__(self, other: TensorLike) -> NDArray[np.bool_]:
        return compare("!=", self, other)

    # Operators
    def __add__(self, other: TensorLike) -> Tensor:
        return Add.apply(self, other)

    def __sub__(self, other: TensorLike) -> Tensor:
        return Sub.apply(self, other)

    def __rsub__(self, other: TensorLike) -> Tensor:
        return Sub.apply(other, self)

    def __mul__(self, other: TensorLike) -> Tensor:
        return Mul.apply(self, other)

    def __truediv__(self, other: TensorLike) -> Tensor:
        return Div.apply(self, other)

    def __rtruediv__(self, other: TensorLike) -> Tensor:
        return Div.apply(other, self)

    def __pow__(self, other: TensorLike) -> Tensor:
        return Pow.apply(self, other)

    def __rpow__(self, other: TensorLike) -> Tensor:
        return Pow.apply(other, self)

    def __neg__(self) -> Tensor:
        return Mul.apply(self, -1.0)

    def __matmul__(self, other: TensorLike) -> Tensor:
        return operations.matmul(self, other)

    def __rmatmul__(self, other: TensorLike) -> Tensor:
        return operations.matmul(other, self)

    def __getitem__(self, index: Any) -> Tensor:
        return Index.apply(self, index=index)

    def __abs__(self) -> Tensor:
        return operations.abs(self)

    __radd__: Final = __add__
    __rmul__: Final = __mul__

    # In-place operators: a new Tensor if a graph or a tape records them, else the array changes.
    def __iadd__(self, other: TensorLike) -> Self:
        return self._in_place("+=", Add, np.add, other)

    def __isub__(self, other: TensorLike) -> Self:
        return self._in_place("-=", Sub, np.subtract, other)

    def __imul__(self, other: TensorLike) -> Self:
        return self._in_place("*=", Mul, np.multiply, other)

    def __itruediv__(self, other: TensorLike) -> Self:
        return self._in_place("/=", Div, np.divide, other)

    def __setitem__(self, index: Any, value: TensorLike) -> None:
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

    def _in_place(self, symbol, operation, ufunc: np.ufunc, other: TensorLike):
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

    # In-place methods change the array unless a graph needs it, and return this tensor.
    def copy_(self, other: TensorLike) -> Self:
        """Copy the values of another tensor or array, broadcast to this shape."""
        return self._set("copy_()", as_array(other), "use the other tensor itself", other)

    def fill_(self, value: builtins.float) -> Self:
        """Set all elements to a number."""
        return self._set("fill_()", value, "use full_like(x, value)")

    def zero_(self) -> Self:
        """Set all elements to 0."""
        return self._set("zero_()", 0.0, "use zeros_like(x)")

    def clamp_(self, min: builtins.float | None = None, max: builtins.float | None = None) -> Self:
        """Limit to [min, max]."""
        limited = operations.clamp(self.data, min, max)
        return self._set("clamp_()", limited, "write x = x.clamp(...)")

    def masked_fill_(self, mask: NDArray[np.bool_], value: builtins.float) -> Self:
        """Set the elements where a bool array of this shape is True to a number."""
        filled = np.where(mask, value, self.data)
        return self._set("masked_fill_()", filled, "write x = x.masked_fill(...)")

    def add_(self, other: TensorLike, *, alpha: builtins.float = 1) -> Self:
        """Add ``alpha * other``."""
        values = self.data + alpha * as_array(other)
        return self._set("add_()", values, "write x = x + y", other)

    def sub_(self, other: TensorLike, *, alpha: builtins.float = 1) -> Self:
        """Subtract ``alpha * other``."""
        values = self.data - alpha * as_array(other)
        return self._set("sub_()", values, "write x = x - y", other)

    def mul_(self, other: TensorLike) -> Self:
        """Multiply by another tensor, array or number."""
        return self._set("mul_()", self.data * as_array(other), "write x = x * y", other)

    def div_(self, other: TensorLike) -> Self:
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

    # Reductions; NumPy's functions of that name call them with NumPy's arguments.
    def sum(self, dim: Dims = None, keepdim: bool = False, **numpy: Any) -> Tensor:
        """Sum over the axes `dim` (all of them by default)."""
        if numpy:
            return _reduced(operations.sum, self, dim, keepdim, numpy)
        return operations.sum(self, dim, keepdim)

    def mean(self, dim: Dims = None, keepdim: bool = False, **numpy: Any) -> Tensor:
        """Compute the mean over the axes `dim` (all of them by default)."""
        if numpy:
            return _reduced(operations.mean, self, dim, keepdim, numpy)
        return operations.mean(self, dim, keepdim)

    def var(
        self,
        dim: Dims = None,
        keepdim: bool = False,
        *,
        correction: builtins.float = 1,
        **numpy: Any,
    ) -> Tensor:
        """Compute the variance over `dim`, with `correction` subtracted from the divisor."""
        if numpy:
            return _reduced(operations.var, self, dim, keepdim, numpy)
        return operations.var(self, dim, correction=correction, keepdim=keepdim)

    def std(
        self,
        dim: Dims = None,
        keepdim: bool = False,
        *,
        correction: builtins.float = 1,
        **numpy: Any,
    ) -> Tensor:
        """Compute the standard deviation, the root of `var`."""
        if numpy:
            return _reduced(operations.std, self, dim, keepdim, numpy)
        return operations.std(self, dim, correction=correction, keepdim=keepdim)

    def max(self, dim: TensorLike | None = None, keepdim: bool = False, **numpy: Any) -> Any:
        """Compute the maximum of all elements; with `dim` an `Ordered`: see `sorting.max`."""
        if numpy:
            return _reduced(operations.amax, self, dim, keepdim, numpy)
        return sorting.max(self, dim, keepdim)

    def min(self, dim: TensorLike | None = None, keepdim: bool = False, **numpy: Any) -> Any:
        """Compute the minimum of all elements; with `dim` an `Ordered`: see `sorting.min`."""
        if numpy:
            return _reduced(operations.amin, self, dim, keepdim, numpy)
        return sorting.min(self, dim, keepdim)

    # Functions of a Tensor, as methods; with `Final`, type checkers use the function's types.
    abs: Final = operations.abs
    exp: Final = operations.exp
    log: Final = operations.log
    sqrt: Final = operations.sqrt
    sin: Final = operations.sin
    cos: Final = operations.cos
    sign: Final = operations.sign
    pow: Final = operations.pow
    clamp: Final = operations.clamp
    maximum: Final = operations.maximum
    minimum: Final = operations.minimum
    amax: Final = operations.amax
    amin: Final = operations.amin
    logsumexp: Final = operations.logsumexp
    norm: Final = operations.norm
    matmul: Final = operations.matmul
    transpose: Final = operations.transpose
    flatten: Final = operations.flatten
    argmax: Final = sorting.argmax
    argmin: Final = sorting.argmin
    gather: Final = sorting.gather
    sort: Final = sorting.sort
    argsort: Final = sorting.argsort
    topk: Final = sorting.topk
    unsqueeze: Final = shapes.unsqueeze
    clone: Final = shapes.clone
    split: Final = shapes.split
    chunk: Final = shapes.chunk
    add: Final = __add__
    sub: Final = __sub__
    mul: Final = __mul__
    div: Final = __truediv__
    neg: Final = __neg__
    mm: Final = __matmul__
    lt: Final = __lt__
    le: Final = __le__
    gt: Final = __gt__
    ge: Final = __ge__
    eq: Final = __eq__
    ne: Final = __ne__

    def squeeze(self, dim: Dims = None, *, axis: Dims = None) -> Tensor:
        """Remove axes of size 1, see `shapes.squeeze`; `axis` is NumPy's name of `dim`."""
        return shapes.squeeze(self, dim if axis is None else axis)

    def masked_fill(self, mask: NDArray[np.bool_], value: builtins.float) -> Tensor:
        """Replace the elements where a bool array is True by a number."""
        return operations.where(mask, value, self)

    def t(self) -> Tensor:
        """Transpose a matrix (M, N) to (N, M); fewer axes are left as they are."""
        return self if self.ndim < 2 else self.transpose(0, 1)

    def view_as(self, other: Tensor) -> Tensor:
        """Reshape to the shape of another tensor."""
        return self.view(other.shape)

    def expand_as(self, other: Tensor) -> Tensor:
        """Repeat along axes of size 1 to the shape of another tensor."""
        return self.expand(other.shape)

    def contiguous(self) -> Self:
        """Return this tensor: `view` accepts any memory layout."""
        return self

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        """Give it another shape: ``x.reshape(2, 3)`` or ``x.reshape((2, 3))``; see `reshape`."""
        return operations.reshape(self, one_tuple(shape))

    view: Final = reshape

    def expand(self, *sizes: int | Sequence[int]) -> Tensor:
        """Repeat along axes of size 1, see `shapes.expand`."""
        return shapes.expand(self, one_tuple(sizes))

    def repeat(self, *sizes: int | Sequence[int]) -> Tensor:
        """Repeat the whole tensor along its axes, see `shapes.repeat`."""
        return shapes.repeat(self, one_tuple(sizes))

    def permute(self, *dims: int | Sequence[int]) -> Tensor:
        """Reorder the axes: axis i of the result is axis ``dims[i]``."""
        return operations.permute(self, one_tuple(dims))

    def flip(self, *dims: int | Sequence[int]) -> Tensor:
        """Reverse the order of elements along axes."""
        return operations.flip(self, one_tuple(dims))

    def broadcast_to(self, *shape: int | Sequence[int]) -> Tensor:
        """Repeat along axes of size 1, and along new leading axes, up to `shape`."""
        return operations.broadcast_to(self, one_tuple(shape))

    def to(self, *target: Any, dtype: DTypeLike | None = None, device: str | None = None) -> Tensor:
        """Convert to another floating-point dtype; returns this tensor if it has it already.

        Parameters
        ----------
        target : dtype, "cpu", or Tensor to take the dtype from
        dtype, device : optional
            The same by name.
        """
        dtype = as_dtype("to", target, dtype, device)
        if dtype is None or self.dtype == dtype:
            return self
        return Cast.apply(self, dtype=np.dtype(dtype))

    def cpu(self) -> Self:
        """Return this tensor: it is on the CPU."""
        return self

    def float(self) -> Tensor:
        """Convert to float32."""
        return self.to(np.float32)

    def double(self) -> Tensor:
        """Convert to float64."""
        return self.to(np.float64)


def check_device(name: str, device: Any) -> None:
    """Raise a ValueError that begins with `name` unless the device is the CPU or None."""
    if device is not None and str(device).split(":")[0] != "cpu":
        raise ValueError(f"{name}: tinybnn runs on the CPU, got {device!r}; leave the device out")


def as_dtype(
    name: str, target: Sequence[Any], dtype: DTypeLike | None = None, device: Any = None
) -> DTypeLike | None:
    """Find the dtype that the arguments of a method ``to`` name: float32, float64 or None."""
    for x in target:
        try:
            dtype = x.dtype if isinstance(x, Variable) else np.dtype(x)
        except TypeError:  # not a dtype
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


def _reduced(operation, x, dim: int | None, keepdim, options):
    """Reduce x by options with NumPy's names: axis, keepdims, ddof, out, dtype."""
    if "axis" not in options:
        return operation(x, dim, keepdim=keepdim, **options)
    for name in ("out", "dtype"):
        if options.pop(name, None) is not None:
            raise TypeError(f"{operation.__name__}: a Tensor takes no {name}")
    names = {"axis": "dim", "keepdims": "keepdim", "ddof": "correction"}
    return operation(x, **{names.get(name, name): value for name, value in options.items()})


class _InMemoryOrder:
    """Wrapper of an array in an object's state that keeps its memory layout in copies and pickles.

    A plain pickle would make a channels-last image C-contiguous.
    """

    def __init__(self, array: Array) -> None:
        self.array = array

    def __deepcopy__(self, memo):
        return deepcopy(self.array, memo)  # keeps the layout, and sharing between objects

    def __reduce__(self):
        if self.array.flags.forc:
            return np.asarray, (self.array,)
        axes = np.argsort([-abs(stride) for stride in self.array.strides], kind="stable")
        in_order = np.ascontiguousarray(self.array.transpose(axes))
        return np.transpose, (in_order, np.argsort(axes).tolist())


def one_tuple(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """Return (2, 3) for the arguments of both f(2, 3) and f((2, 3))."""
    if len(arguments) == 1 and not isinstance(arguments[0], int | np.integer):
        return tuple(arguments[0])
    return arguments
