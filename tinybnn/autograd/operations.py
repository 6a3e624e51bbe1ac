"""Operations on arrays and Tensors: elementwise, reductions, matrix product, shapes.

Each is a `Function` with its forward computation and gradient rule side by side. Below the rules,
a public function checks the arguments and applies it.

The functions take a Tensor or an array of floats, of any shape if no other is given, and return
the same kind in the same dtype. Two operands are broadcast against each other.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd.engine import BroadcastTo, Function, SumTo, Variable, as_array, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import ArrayLike, DTypeLike

    from tinybnn.autograd.tensor import Tensor
    from tinybnn.typing import Array, Dims, Shape, TensorLike, V

# -------------------------------------------------------------------------- elementwise operations


class Add(Function):
    saves: tuple[str, ...] = ()
    broadcasts = True

    def forward(self, a: Array, b: Array) -> Array:
        return a + b

    def backward(self, grad: V, output: V, a: V, b: V) -> tuple[V, V]:
        return grad, grad


class Sub(Function):
    saves: tuple[str, ...] = ()
    broadcasts = True

    def forward(self, a: Array, b: Array) -> Array:
        return a - b

    def backward(self, grad: V, output: V, a: V, b: V) -> tuple[V | None, V | None]:
        grad_b = None
        if self.needs[1]:  # sum first: an operand that was broadcast is cheaper to negate
            shape = self.shapes[1]
            grad_b = -(grad if np.shape(grad) == shape else SumTo.apply(grad, shape=shape))
        return grad, grad_b


class Mul(Function):
    broadcasts = True

    def forward(self, a: Array, b: Array) -> Array:
        return a * b

    def backward(self, grad: V, output: V, a: V, b: V) -> tuple[V | None, V | None]:
        return (grad * b if self.needs[0] else None, grad * a if self.needs[1] else None)


class Div(Function):
    broadcasts = True

    def forward(self, a: Array, b: Array) -> Array:
        return a / b

    def backward(self, grad: V, output: V, a: V, b: V) -> tuple[V | None, V | None]:
        return (
            grad / b if self.needs[0] else None,
            -grad / b * (a / b) if self.needs[1] else None,  # b * b might overflow
        )


class Pow(Function):
    """x ** p. The slope in x is 0 where p is 0; the slope in p is taken as 0 where x is 0."""

    broadcasts = True
    saves: tuple[str, ...] = ("inputs", "output")

    def forward(self, x: Array, p: Array | float) -> Array:
        return x**p

    def backward(self, grad: V, output: V, x: V, p: V) -> tuple[V | None, V | None]:
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
    """Apply np.maximum or np.minimum, but return ``a`` where both are 0.

    NumPy does not specify which of 0.0 and -0.0 is returned: it depends on the CPU and the array's
    size. A later division would make the difference visible.
    """
    result = ufunc(a, b)
    ties = (result == 0) & (np.asarray(a) == 0)  # rare; `exact.maximum` needs more passes
    return np.where(ties, a, result).astype(result.dtype) if np.any(ties) else result


def clip(x: Array, low: float | None, high: float | None) -> Array:
    """Limit x to [low, high] (None: no limit), keeping x where it equals a limit.

    Parameters
    ----------
    x : array of floats, of any shape
    low, high : float or None

    Returns
    -------
    array of x's shape and dtype
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
    """The larger operand, or the first of equal ones (0.0 and -0.0), which share the gradient."""

    broadcasts = True

    def forward(self, a: Array, b: Array) -> Array:
        return _first_of_equals(np.maximum, a, b)

    def backward(self, grad: V, output: V, a: V, b: V) -> tuple[V, V]:
        a, b = as_array(a), as_array(b)
        share = (0.5 * ((a >= b) + 1.0 * (a > b))).astype(as_array(grad).dtype)  # 0, 1/2 or 1
        return grad * share, grad * (1.0 - share)


class Minimum(Maximum):
    """The smaller operand, or the first of equal ones (0.0 and -0.0), which share the gradient."""

    def forward(self, a: Array, b: Array) -> Array:
        return _first_of_equals(np.minimum, a, b)

    def backward(self, grad: V, output: V, a: V, b: V) -> tuple[V, V]:
        return super().backward(grad, output, b, a)  # a wins where b is the larger one


class Exp(Function):
    saves: tuple[str, ...] = ("output",)

    def forward(self, x: Array) -> Array:
        return np.exp(x)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad * output


class Log(Function):
    def forward(self, x: Array) -> Array:
        return np.log(x)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad / x


class Sin(Function):
    def forward(self, x: Array) -> Array:
        return np.sin(x)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad * cos(x)


class Cos(Function):
    def forward(self, x: Array) -> Array:
        return np.cos(x)

    def backward(self, grad: V, output: V, x: V) -> V:
        return -grad * sin(x)


class Sign(Function):
    """-1, 0 or 1; the slope is 0 everywhere."""

    saves: tuple[str, ...] = ()

    def forward(self, x: Array) -> Array:
        return np.subtract(x > 0, x < 0, dtype=x.dtype)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad * 0.0


class Sqrt(Function):
    saves: tuple[str, ...] = ("output",)

    def forward(self, x: Array) -> Array:
        return np.sqrt(x)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad * 0.5 / output


class Abs(Function):
    """|x|, with slope 0 at 0."""

    def forward(self, x: Array) -> Array:
        return np.abs(x)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad * np.sign(as_array(x))


class Clamp(Function):
    """Limit x to [low, high]; the slope is 1 inside and at the limits, and 0 outside."""

    def forward(self, x: Array, low: float | None, high: float | None) -> Array:
        self._low, self._high = low, high
        return clip(x, low, high)

    def backward(self, grad: V, output: V, x: V) -> V:
        values = as_array(x)
        low = -np.inf if self._low is None else self._low
        high = np.inf if self._high is None else self._high
        return grad * ((values >= low) & (values <= high))


def select(condition: Array, a: ArrayLike, b: ArrayLike) -> Array:
    """Compute `numpy.where` of floats bit for bit, 3 to 7 times as fast: no branch per element.

    Parameters
    ----------
    condition : bool array
    a, b : arrays of floats, or numbers
        Broadcast against the condition.

    Returns
    -------
    array of the broadcast shape, float32 or float64
    """
    dtype = np.result_type(a, b)
    if dtype not in (np.float32, np.float64):
        return np.where(condition, a, b)
    bits = np.dtype(f"i{dtype.itemsize}")
    a, b = (np.asarray(x, dtype).view(bits) for x in (a, b))
    mask = -condition.view(np.int8).astype(bits)  # all bits 1, or none
    return (((a ^ b) & mask) ^ b).view(dtype)


class Where(Function):
    saves: tuple[str, ...] = ()
    broadcasts = True

    def forward(self, condition: Array, a: Array | float, b: Array | float) -> Array:
        self._condition = condition = np.asarray(condition, bool)
        if not (np.ndim(a) or np.ndim(b)):  # numbers must not decide the dtype
            return np.where(condition, a, b).astype(np.result_type(a, b, np.float32))
        return select(condition, a, b)

    def backward(self, grad: V, output: V, condition: V, a: V, b: V) -> tuple[None, V, V]:
        return None, where(self._condition, grad, 0.0), where(self._condition, 0.0, grad)


class Cast(Function):
    saves: tuple[str, ...] = ()

    def forward(self, x: Array, dtype: DTypeLike) -> Array:
        self._before = x.dtype
        return x.astype(dtype)

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad.to(self._before) if isinstance(grad, Variable) else grad.astype(self._before)


def exp(x: V) -> V:
    """Compute e ** x for x of any shape, element by element."""
    return Exp.apply(x)


def log(x: V) -> V:
    """Compute the natural logarithm of x of any shape, element by element."""
    return Log.apply(x)


def sin(x: V) -> V:
    """Compute the sine of x in radians, of any shape, element by element."""
    return Sin.apply(x)


def cos(x: V) -> V:
    """Compute the cosine of x in radians, of any shape, element by element."""
    return Cos.apply(x)


def sign(x: V) -> V:
    """Compute -1 where x < 0, 1 where x > 0, else 0 (as PyTorch: also for NaN), with slope 0.

    x has any shape. A binary network needs two values and a gradient, and uses
    `tinybnn.quantizers.ste_sign`, which returns +1 at 0 and passes the gradient straight through.
    """
    return Sign.apply(x)


def sqrt(x: V) -> V:
    """Compute the square root of x of any shape, element by element."""
    return Sqrt.apply(x)


def pow(x: V, exponent: TensorLike) -> V:
    """Compute x ** exponent element by element; the shapes are broadcast."""
    return Pow.apply(x, exponent)


def abs(x: V) -> V:
    """Compute the absolute value of x of any shape; the slope is 0 at 0."""
    return Abs.apply(x)


def maximum(a: V | ArrayLike, b: V | ArrayLike) -> V:
    """Compute the larger of a and b, element by element; the shapes are broadcast.

    Equal elements share the gradient evenly.
    """
    return Maximum.apply(a, b)


def minimum(a: V | ArrayLike, b: V | ArrayLike) -> V:
    """Compute the smaller of a and b, element by element; the shapes are broadcast.

    Equal elements share the gradient evenly.
    """
    return Minimum.apply(a, b)


def clamp(x: V, min: float | None = None, max: float | None = None) -> V:
    """Limit x of any shape to [min, max]; the slope is 1 inside and at the limits, 0 outside."""
    if min is None and max is None:
        raise ValueError("clamp: give min, max or both")
    min, max = (v.item() if isinstance(v, np.generic) else v for v in (min, max))
    return Clamp.apply(x, low=min, high=max)


def where(condition: Array | Comparison | Tensor, a: V | ArrayLike, b: V | ArrayLike) -> V:
    """Select elements of `a` where the bool array `condition` is True, of `b` elsewhere.

    The shapes of all three are broadcast against each other.
    """
    if isinstance(condition, Comparison):
        condition = condition.recorded()
    elif not isinstance(condition, Variable):
        condition = np.asarray(condition, dtype=bool)
    return Where.apply(condition, a, b)


# ------------------------------------------------------------------------------------- reductions


class DimError(IndexError, ValueError):
    """A dim that the array does not have: an IndexError as in PyTorch, and a ValueError."""


class SizeError(RuntimeError, ValueError):
    """Sizes that do not fit: a RuntimeError as in PyTorch, and a ValueError."""


def normalized_dims(dim: Dims, ndim: int) -> tuple[int, ...]:
    """Convert `dim` (None, int or tuple; negative counts from the end) to a tuple of axes."""
    if dim is None:
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int | np.integer) else tuple(dim)
    for d in dims:
        if not -ndim <= d < ndim:
            raise DimError(f"dim {d} is out of range for a tensor of {ndim} dimensions")
    dims = tuple(int(d) % ndim for d in dims)
    if len(set(dims)) != len(dims):
        raise ValueError(f"dim {dim} names an axis twice")
    return dims


class Sum(Function):
    saves: tuple[str, ...] = ()

    def forward(self, x: Array, dim: tuple[int, ...], keepdim: bool) -> Array:
        self._kept = tuple(1 if i in dim else n for i, n in enumerate(x.shape))
        return x.sum(axis=dim, keepdims=keepdim)

    def backward(self, grad: V, output: V, x: V) -> V:
        return broadcast_to(reshape(grad, self._kept), self.shapes[0])


class SumPixels(Sum):
    """Sum over axes after the channels, from 0.0, pixel by pixel in row-major order.

    The fixed order makes the result independent of the layout in memory, so that a packed model
    reproduces it.
    """

    def forward(self, x: Array, dim: tuple[int, ...], keepdim: bool) -> Array:
        self._kept = tuple(1 if i in dim else n for i, n in enumerate(x.shape))
        pixels = np.moveaxis(x, sorted(dim), range(len(dim)))
        sizes, shape = pixels.shape[: len(dim)], pixels.shape[len(dim) :]
        if math.prod(sizes) <= math.prod(shape):
            total = np.zeros(shape, x.dtype)
            for place in np.ndindex(sizes):
                total += pixels[place]
        else:  # few channels
            rows = pixels.reshape(-1, *shape)
            total = np.add.accumulate(rows, axis=0)[-1] + x.dtype.type(0)
        return total.reshape(self._kept) if keepdim else total


class Amax(Function):
    """Maximum, or the first of equal ones (0.0 and -0.0), which share the gradient evenly."""

    saves: tuple[str, ...] = ("inputs", "output")
    _reduce = np.maximum.reduce

    def forward(self, x: Array, dim: tuple[int, ...], keepdim: bool) -> Array:
        self._dim = dim
        self._kept = tuple(1 if i in dim else n for i, n in enumerate(x.shape))
        result = self._reduce(x, axis=dim, keepdims=True)
        if np.any(result == 0):  # NumPy does not specify which zero it returns
            ends = range(-len(dim), 0)
            rows = np.moveaxis(x, sorted(dim), ends).reshape(*result.squeeze(dim).shape, -1)
            first = np.argmax(rows == 0, axis=-1)[..., None]
            zeros = np.take_along_axis(rows, first, -1).reshape(result.shape)
            result = np.where(result == 0, zeros, result)
        return result if keepdim else result.squeeze(dim)[()]

    def backward(self, grad: V, output: V, x: V) -> V:
        values = as_array(x)
        ties = values == as_array(output).reshape(self._kept)
        share = ties / ties.sum(axis=self._dim, keepdims=True).astype(values.dtype)
        return reshape(grad, self._kept) * share


class Amin(Amax):
    """Minimum, or the first of equal ones (0.0 and -0.0), which share the gradient evenly."""

    _reduce = np.minimum.reduce


class LogSumExp(Function):
    """log(sum(exp(x))) without overflow; its gradient is the softmax."""

    saves: tuple[str, ...] = ("inputs", "output")

    def forward(self, x: Array, dim: tuple[int, ...], keepdim: bool) -> Array:
        self._kept = tuple(1 if i in dim else n for i, n in enumerate(x.shape))
        largest = x.max(axis=dim, keepdims=True)
        shift = np.where(np.isfinite(largest), largest, x.dtype.type(0))
        with np.errstate(divide="ignore", over="ignore"):  # all -inf: log(0); or one is +inf
            result = np.log(np.exp(x - shift).sum(axis=dim, keepdims=True)) + shift
        return result if keepdim else result.squeeze(dim)

    def backward(self, grad: V, output: V, x: V) -> V:
        output = reshape(output, self._kept)
        output = where(np.isfinite(as_array(output)), output, 0.0)  # -inf - -inf would be NaN
        return reshape(grad, self._kept) * exp(x - output)


def sum(x: V, dim: Dims = None, keepdim: bool = False) -> V:
    """Sum over the axes `dim` (all of them by default).

    Over pixel axes (2 and up, after samples and channels), numbers are added in row-major order.
    """
    dims = normalized_dims(dim, np.ndim(as_array(x)))
    are_pixels = bool(dims) and all(d >= 2 for d in dims)
    return (SumPixels if are_pixels else Sum).apply(x, dim=dims, keepdim=bool(keepdim))


def mean(x: V, dim: Dims = None, keepdim: bool = False) -> V:
    """Compute the mean over the axes `dim` (all of them by default)."""
    shape = np.shape(as_array(x))
    count = int(np.prod([shape[d] for d in normalized_dims(dim, len(shape))]))
    if count == 0:
        raise ValueError(f"mean: no elements along dim {dim} of shape {shape}")
    return sum(x, dim, keepdim) * (1.0 / count)


def var(x: V, dim: Dims = None, *, correction: float = 1, keepdim: bool = False) -> V:
    """Compute the variance over the axes `dim` (all of them by default).

    `correction` is subtracted from the number of elements in the divisor.
    """
    shape = np.shape(as_array(x))
    count = int(np.prod([shape[d] for d in normalized_dims(dim, len(shape))]))
    if count <= correction:
        raise ValueError(f"var: {count} elements with correction={correction} leave none to divide")
    centred = x - mean(x, dim, keepdim=True)
    return sum(centred * centred, dim, keepdim) * (1.0 / (count - correction))


def std(x: V, dim: Dims = None, *, correction: float = 1, keepdim: bool = False) -> V:
    """Compute the standard deviation over the axes `dim`, the root of `var`.

    The slope is 0 where it is 0.
    """
    return _root(var(x, dim, correction=correction, keepdim=keepdim))


def norm(x: V, p: float = 2, dim: Dims = None, keepdim: bool = False) -> V:
    """Compute the p-norm over the axes `dim` (all of them by default), with p 1, 2 or infinity.

    The slope is 0 where the norm is 0.
    """
    if p not in (1, 2, math.inf):
        raise ValueError(f"norm: p must be 1, 2 or math.inf, got {p!r}")
    if p == 2:
        return _root(sum(x * x, dim, keepdim))
    return (sum if p == 1 else amax)(abs(x), dim, keepdim)


def _root(x: V) -> V:
    """Compute the square root of numbers >= 0, with slope 0 at 0."""
    is_zero = as_array(x) == 0
    if not np.any(is_zero):
        return sqrt(x)
    return where(is_zero, x, sqrt(where(is_zero, 1.0, x)))


def amax(x: V, dim: Dims = None, keepdim: bool = False) -> V:
    """Compute the maximum over the axes `dim`; equal maxima share the gradient evenly."""
    return Amax.apply(x, dim=normalized_dims(dim, np.ndim(as_array(x))), keepdim=bool(keepdim))


def amin(x: V, dim: Dims = None, keepdim: bool = False) -> V:
    """Compute the minimum over the axes `dim`; equal minima share the gradient evenly."""
    return Amin.apply(x, dim=normalized_dims(dim, np.ndim(as_array(x))), keepdim=bool(keepdim))


def logsumexp(x: V, dim: Dims, keepdim: bool = False) -> V:
    """Compute log(sum(exp(x))) over the axes `dim`, without overflow."""
    return LogSumExp.apply(x, dim=normalized_dims(dim, np.ndim(as_array(x))), keepdim=bool(keepdim))


# --------------------------------------------------------------------------------- matrix product


class MatMul(Function):
    """Product of (stacks of) matrices: (..., M, K) @ (..., K, N) -> (..., M, N)."""

    broadcasts = True  # the leading axes
    fresh = True

    def forward(self, a: Array, b: Array) -> Array:
        return a @ b

    def backward(self, grad: V, output: V, a: V, b: V) -> tuple[V | None, V | None]:
        return (
            grad @ transpose(b, -2, -1) if self.needs[0] else None,
            transpose(a, -2, -1) @ grad if self.needs[1] else None,
        )


def matmul(a: V | ArrayLike, b: V | ArrayLike) -> V:
    """Multiply matrices (..., M, K) and (..., K, N) to (..., M, N); vectors as in PyTorch.

    The leading axes are broadcast. A vector counts as a row on the left and as a column on the
    right; its axis is missing from the result.
    """
    shape_a, shape_b = np.shape(as_array(a)), np.shape(as_array(b))
    if not shape_a or not shape_b:
        raise SizeError(f"matmul: expects at least one axis, got shapes {shape_a} and {shape_b}")
    inner = shape_b[0] if len(shape_b) == 1 else shape_b[-2]
    if shape_a[-1] != inner:
        raise SizeError(f"matmul: inner sizes differ in shapes {shape_a} and {shape_b}")
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
    saves: tuple[str, ...] = ()
    views = True

    def forward(self, x: Array, shape: Shape) -> Array:
        return x.reshape(shape)

    def backward(self, grad: V, output: V, x: V) -> V:
        return reshape(grad, self.shapes[0])


class Permute(Function):
    saves: tuple[str, ...] = ()
    views = True

    def forward(self, x: Array, dims: tuple[int, ...]) -> Array:
        self._inverse = tuple(int(i) for i in np.argsort(dims))
        return x.transpose(dims)

    def backward(self, grad: V, output: V, x: V) -> V:
        return permute(grad, self._inverse)


class Flip(Function):
    saves: tuple[str, ...] = ()
    views = True

    def forward(self, x: Array, dims: tuple[int, ...]) -> Array:
        self._dims = dims
        return np.flip(x, dims)

    def backward(self, grad: V, output: V, x: V) -> V:
        return flip(grad, self._dims)


class Index(Function):
    """x[index], for slices, integers, integer arrays and boolean masks."""

    saves: tuple[str, ...] = ()
    views = True

    def forward(self, x: Array, index: Any) -> Array:
        self._index = index
        return x[index]

    def backward(self, grad: V, output: V, x: V) -> V:
        return IndexAdd.apply(grad, index=self._index, shape=self.shapes[0])


class IndexAdd(Function):
    """Zeros of `shape` with `x` added at `index`; repeated indices accumulate."""

    saves: tuple[str, ...] = ()

    def forward(self, x: Array, index: Any, shape: Shape) -> Array:
        self._index = index
        result = np.zeros(shape, x.dtype)
        parts = index if isinstance(index, tuple) else (index,)
        basic = (int, np.integer, slice, type(None), type(...))
        if any(not isinstance(part, basic) for part in parts):
            np.add.at(result, index, x)
        else:  # no index is repeated; 50 times faster
            result[index] = x
        return result

    def backward(self, grad: V, output: V, x: V) -> V:
        return Index.apply(grad, index=self._index)


class Pad(Function):
    saves: tuple[str, ...] = ()

    def forward(self, x: Array, widths: tuple[tuple[int, int], ...], value: float) -> Array:
        self._inside = tuple(
            slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True)
        )
        shape = tuple(b + n + a for (b, a), n in zip(widths, x.shape, strict=True))
        result = np.full_like(x, value, shape=shape)  # keeps x's memory layout, unlike np.pad
        result[self._inside] = x
        return result

    def backward(self, grad: V, output: V, x: V) -> V:
        return grad[self._inside]


class Cat(Function):
    saves: tuple[str, ...] = ()

    def forward(self, *arrays: Array, dim: tuple[int, ...]) -> Array:
        self._dim = dim
        self._ends = np.cumsum([a.shape[dim] for a in arrays])
        return np.concatenate(arrays, dim)

    def backward(self, grad: V, output: V, *inputs: V) -> tuple[V, ...]:
        before = (slice(None),) * self._dim
        starts = (0, *self._ends[:-1])
        return tuple(
            grad[(*before, slice(int(start), int(end)))]
            for start, end in zip(starts, self._ends, strict=True)
        )


def reshape(x: V, shape: Sequence[int]) -> V:
    """Give x another shape, with its elements in row-major order; one size may be -1."""
    try:
        return Reshape.apply(x, shape=tuple(shape))
    except ValueError:
        raise SizeError(
            f"reshape: {np.shape(as_array(x))} does not fit into {tuple(shape)}"
        ) from None


def permute(x: V, dims: Sequence[int]) -> V:
    """Reorder the axes: axis i of the result is axis ``dims[i]`` of x."""
    ndim = np.ndim(as_array(x))
    dims = tuple(dims)
    if len(dims) != ndim or sorted(normalized_dims(dims, ndim)) != list(range(ndim)):
        raise SizeError(f"permute: {dims} does not name each of the {ndim} axes once")
    return Permute.apply(x, dims=normalized_dims(dims, ndim))


def transpose(x: V, dim0: int, dim1: int) -> V:
    """Swap the axes dim0 and dim1."""
    ndim = np.ndim(as_array(x))
    (dim0,), (dim1,) = normalized_dims(dim0, ndim), normalized_dims(dim1, ndim)
    dims = list(range(ndim))
    dims[dim0], dims[dim1] = dim1, dim0
    return Permute.apply(x, dims=tuple(dims))


def flip(x: V, dims: int | Sequence[int]) -> V:
    """Reverse the order of elements along the axes `dims`."""
    return Flip.apply(x, dims=normalized_dims(dims, np.ndim(as_array(x))))


def flatten(x: V, start_dim: int = 0, end_dim: int = -1) -> V:
    """Merge the axes start_dim to end_dim (inclusive) into one."""
    shape = np.shape(as_array(x))
    (start,), (end,) = normalized_dims(start_dim, len(shape)), normalized_dims(end_dim, len(shape))
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} is after end_dim {end_dim}")
    merged = int(np.prod(shape[start : end + 1]))
    return reshape(x, (*shape[:start], merged, *shape[end + 1 :]))


def broadcast_to(x: V, shape: Sequence[int]) -> V:
    """Repeat x along axes of size 1, and along new leading axes, up to `shape`."""
    return BroadcastTo.apply(x, shape=tuple(shape))


def pad(x: V, pad: Sequence[int], value: float = 0.0) -> V:
    """Add a border of `value`.

    Parameters
    ----------
    x : Tensor or array, of any shape
    pad : sequence of int
        Widths in PyTorch's order: (before, after) the last axis, then the one before it, ...
    value : float

    Returns
    -------
    Tensor or array
        Each size grows by the two widths of its axis.
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


def cat(tensors: Iterable[V], dim: int = 0) -> V:
    """Join Tensors or arrays along an existing axis; their other sizes must be equal."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("cat: expects at least one tensor, got none")
    (dim,) = normalized_dims(dim, np.ndim(as_array(tensors[0])))
    shapes = [np.shape(as_array(t)) for t in tensors]
    if len({(*s[:dim], *s[dim + 1 :]) for s in shapes}) != 1:
        raise SizeError(f"cat: shapes {shapes} differ outside of dim {dim}")
    return Cat.apply(*tensors, dim=dim)


def stack(tensors: Iterable[V], dim: int = 0) -> V:
    """Join Tensors or arrays of equal shape along a new axis."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("stack: expects at least one tensor, got none")
    shapes = [np.shape(as_array(t)) for t in tensors]
    if len(set(shapes)) != 1:
        raise SizeError(f"stack: expects equal shapes, got {shapes}")
    (dim,) = normalized_dims(dim, len(shapes[0]) + 1)
    new = (*shapes[0][:dim], 1, *shapes[0][dim:])
    return cat([reshape(t, new) for t in tensors], dim)


# ------------------------------------------------------------------------------------ comparisons

COMPARISONS: dict[str, np.ufunc] = {
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
    "==": np.equal, "!=": np.not_equal,
}  # fmt: skip


def compare(operator: str, x: TensorLike, other: TensorLike) -> Any:
    """Compare element by element: an array of bools of the broadcast shape.

    Inside `trace` the result is a `Comparison`.
    """
    array = COMPARISONS[operator](as_array(x), as_array(other))
    return array if state.tape is None else Comparison(array, operator, (x, other))


class Comparison:
    """The result of ``x > y`` inside `trace`: the bool array and the operands it came from.

    It is recorded when it is the condition of `where` or an operand of a Tensor. All other uses
    act on the array; their results are constants to the tape, which notes an `Escape`.

    Parameters
    ----------
    array : bool array, of any shape
    operator : str
        A key of `COMPARISONS`.
    inputs : tuple
        The two operands.
    """

    array: Array
    operator: str
    inputs: tuple[Any, ...]
    __hash__: Any = None
    __array_priority__: int = 1000

    def __init__(self, array: Array, operator: str, inputs: tuple[Any, ...]) -> None:
        self.array, self.operator, self.inputs = array, operator, inputs

    def recorded(self) -> Tensor:
        """Return a recorded Tensor: 1.0 where the comparison holds, else 0.0."""
        return Compare.apply(*self.inputs, operator=self.operator)

    def _values(self, use):
        if state.tape is not None:
            state.tape.escape(
                f"the result of a comparison ({self.operator}) is used by {use}; only "
                "where(x > y, ...) and products such as x * (x > 0) have a packed form",
                *(x for x in self.inputs if isinstance(x, Variable)),
            )
        return self.array

    @property
    def shape(self) -> Shape:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def size(self) -> int:
        return self.array.size

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._values(name), name)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self._values("a NumPy function"), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"Comparison({self.array!r})"


def _as_array_method(name):
    """Make a method that calls a special method of the array; Python looks for it in the class."""

    def method(self, *others):
        if any(isinstance(other, Variable) for other in others):
            return NotImplemented  # the Tensor's method handles it
        others = [other.array if isinstance(other, Comparison) else other for other in others]
        return getattr(self._values(name.strip("_")), name)(*others)

    return method


for _name in (
    "bool", "int", "float", "index", "len", "iter", "getitem", "contains", "invert", "neg", "abs",
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "rand", "ror", "rxor",
    "add", "sub", "mul", "truediv", "pow", "matmul", "radd", "rsub", "rmul", "rtruediv", "rpow",
):  # fmt: skip
    setattr(Comparison, f"__{_name}__", _as_array_method(f"__{_name}__"))


class Compare(Function):
    """1 where a comparison holds, else 0: the condition of a `where`, as `trace` records it."""

    saves: tuple[str, ...] = ()
    broadcasts = True

    def forward(self, a: Array, b: Array, operator: str) -> Array:
        return COMPARISONS[operator](a, b).astype(np.result_type(a, b, np.float32))

    def backward(self, grad: V, output: V, a: V, b: V) -> tuple[None, None]:
        return None, None  # a step function has no useful gradient


# ------------------------------------------------------------------------------ NumPy's functions

# Elementwise NumPy functions, and the operation that replaces each when called with a Tensor.
OF_NUMPY: dict[np.ufunc, Callable[..., Any]] = {
    np.add: Add.apply, np.subtract: Sub.apply, np.multiply: Mul.apply, np.divide: Div.apply,
    np.power: Pow.apply, np.negative: lambda x: -x, np.absolute: abs, np.square: lambda x: x * x,
    np.exp: exp, np.log: log, np.sqrt: sqrt, np.sin: sin, np.cos: cos,
    np.maximum: maximum, np.minimum: minimum, np.matmul: matmul,
    **{ufunc: functools.partial(compare, symbol) for symbol, ufunc in COMPARISONS.items()},
}  # fmt: skip
