"""The Tensor: a Variable with operators and methods, PyTorch's names."""

from __future__ import annotations

from copy import deepcopy

import numpy as np

import tinybnn.autograd.operations as operations
from tinybnn.autograd.engine import FLOATS, Variable, as_array, check_dtype, class_of_results, state
from tinybnn.autograd.operations import OF_NUMPY, Add, Cast, Div, Index, Mul, Pow, Sub, compare


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

    def numel(self):
        """Number of elements."""
        return self.data.size

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

    def _needed_by_graph(self, symbol, instead):
        kind = "a leaf" if self.function is None else f"the result of {self.function}"
        return RuntimeError(
            f"{symbol} on a Tensor that a graph needs ({kind} that requires grad, shape "
            f"{self.shape}): {instead}, or wrap the change in no_grad()"
        )

    # Functions of a Tensor, as methods.
    abs, exp, log, sqrt = operations.abs, operations.exp, operations.log, operations.sqrt
    clamp, maximum, minimum = operations.clamp, operations.maximum, operations.minimum
    sum, mean, var = operations.sum, operations.mean, operations.var
    amax, amin, logsumexp = operations.amax, operations.amin, operations.logsumexp
    matmul, transpose, flatten = operations.matmul, operations.transpose, operations.flatten

    def reshape(self, *shape):
        return operations.reshape(self, _one_tuple(shape))

    def permute(self, *dims):
        return operations.permute(self, _one_tuple(dims))

    def flip(self, *dims):
        return operations.flip(self, _one_tuple(dims))

    def broadcast_to(self, *shape):
        return operations.broadcast_to(self, _one_tuple(shape))

    def to(self, dtype):
        """This tensor in another floating-point dtype (itself if it has it already)."""
        check_dtype(dtype, "to")
        return self if self.dtype == dtype else Cast.apply(self, dtype=np.dtype(dtype))


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
