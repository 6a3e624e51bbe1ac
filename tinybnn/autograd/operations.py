"""Operations on arrays and Tensors: elementwise, reductions, matrix product, shapes.

Each is a `Function`, forward beside the rule of its gradient, and below the rules a function that
checks its arguments and applies it.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from tinybnn.autograd.engine import BroadcastTo, Function, SumTo, Variable, as_array, state

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
        of_b = None
        if self.needs[1]:  # summed up first: what was repeated is the smaller one to negate
            shape = self.shapes[1]
            of_b = -(grad if np.shape(grad) == shape else SumTo.apply(grad, shape=shape))
        return grad, of_b


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


class Sin(Function):
    def forward(self, x):
        return np.sin(x)

    def backward(self, grad, output, x):
        return grad * cos(x)


class Cos(Function):
    def forward(self, x):
        return np.cos(x)

    def backward(self, grad, output, x):
        return -grad * sin(x)


class Sign(Function):
    """-1, 0 or 1; the slope is 0 everywhere."""

    saves = ()

    def forward(self, x):
        return np.subtract(x > 0, x < 0, dtype=x.dtype)

    def backward(self, grad, output, x):
        return grad * 0.0


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


def select(condition, a, b):
    """`numpy.where` of floats, to the bit; without a branch for each element 3 to 7 times as fast.

    Parameters
    ----------
    condition : bool array
    a, b : arrays of floats, or numbers
    """
    dtype = np.result_type(a, b)
    if dtype not in (np.float32, np.float64):
        return np.where(condition, a, b)
    bits = np.dtype(f"i{dtype.itemsize}")
    a, b = (np.asarray(x, dtype).view(bits) for x in (a, b))
    chosen = -condition.view(np.int8).astype(bits)  # all bits 1, or none
    return (((a ^ b) & chosen) ^ b).view(dtype)


class Where(Function):
    saves = ()
    broadcasts = True

    def forward(self, condition, a, b):
        self.condition = condition = np.asarray(condition, bool)
        if not (np.ndim(a) or np.ndim(b)):  # numbers must not decide the dtype
            return np.where(condition, a, b).astype(np.result_type(a, b, np.float32))
        return select(condition, a, b)

    def backward(self, grad, output, condition, a, b):
        return None, where(self.condition, grad, 0.0), where(self.condition, 0.0, grad)


class Cast(Function):
    saves = ()

    def forward(self, x, dtype):
        self.before = x.dtype
        return x.astype(dtype)

    def backward(self, grad, output, x):
        return grad.to(self.before) if isinstance(grad, Variable) else grad.astype(self.before)


def exp(x):
    """e ** x."""
    return Exp.apply(x)


def log(x):
    """Natural logarithm."""
    return Log.apply(x)


def sin(x):
    """Sine, x in radians."""
    return Sin.apply(x)


def cos(x):
    """Cosine, x in radians."""
    return Cos.apply(x)


def sign(x):
    """-1 where x < 0, 1 where x > 0, else 0, as PyTorch's: 0 at 0 and for NaN, with slope 0.

    A binary network wants two values and a gradient: `tinybnn.quantizers.ste_sign` gives +1 at 0,
    and passes the gradient straight through.
    """
    return Sign.apply(x)


def sqrt(x):
    """Square root."""
    return Sqrt.apply(x)


def pow(x, exponent):
    """x ** exponent."""
    return Pow.apply(x, exponent)


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
    elif not isinstance(condition, Variable):
        condition = np.asarray(condition, dtype=bool)
    return Where.apply(condition, a, b)


# ------------------------------------------------------------------------------------- reductions


class DimError(IndexError, ValueError):
    """A dim that an array does not have: PyTorch's IndexError, and a wrong value."""


class SizeError(RuntimeError, ValueError):
    """Sizes that do not fit: PyTorch's RuntimeError, and a wrong value."""


def _dims(dim, ndim):
    """`dim` (None, int or tuple; negative counts from the end) as a tuple of axes."""
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


def std(x, dim=None, *, correction=1, keepdim=False):
    """Standard deviation over the axes `dim`; the slope is 0 where it is 0."""
    return _root(var(x, dim, correction=correction, keepdim=keepdim))


def norm(x, p=2, dim=None, keepdim=False):
    """The p-norm over the axes `dim` (all of them by default), p 1, 2 or infinity.

    Where it is 0, so is its slope.
    """
    if p not in (1, 2, math.inf):
        raise ValueError(f"norm: p must be 1, 2 or math.inf, got {p!r}")
    if p == 2:
        return _root(sum(x * x, dim, keepdim))
    return (sum if p == 1 else amax)(abs(x), dim, keepdim)


def _root(x):
    """The square root of numbers >= 0, with slope 0 at 0."""
    is_zero = as_array(x) == 0
    if not np.any(is_zero):
        return sqrt(x)
    return where(is_zero, x, sqrt(where(is_zero, 1.0, x)))


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
    fresh = True

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
        raise SizeError(f"matmul: needs at least one axis, got shapes {shape_a} and {shape_b}")
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
        raise SizeError(
            f"reshape: {np.shape(as_array(x))} does not fit into {tuple(shape)}"
        ) from None


def permute(x, dims):
    """Reorder the axes."""
    ndim = np.ndim(as_array(x))
    dims = tuple(dims)
    if len(dims) != ndim or sorted(_dims(dims, ndim)) != list(range(ndim)):
        raise SizeError(f"permute: {dims} does not name each of the {ndim} axes once")
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
        raise SizeError(f"cat: shapes {shapes} differ outside of dim {dim}")
    return Cat.apply(*tensors, dim=dim)


def stack(tensors, dim=0):
    """Join along a new axis."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("stack: expects at least one tensor, got none")
    shapes = [np.shape(as_array(t)) for t in tensors]
    if len(set(shapes)) != 1:
        raise SizeError(f"stack: expects equal shapes, got {shapes}")
    (dim,) = _dims(dim, len(shapes[0]) + 1)
    new = (*shapes[0][:dim], 1, *shapes[0][dim:])
    return cat([reshape(t, new) for t in tensors], dim)


# ------------------------------------------------------------------------------------ comparisons

COMPARISONS = {  # operators and what NumPy calls them
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
    "==": np.equal, "!=": np.not_equal,
}  # fmt: skip


def compare(operator, x, other):
    """An array of bools; inside `trace` a `Comparison`."""
    array = COMPARISONS[operator](as_array(x), as_array(other))
    return array if state.tape is None else Comparison(array, operator, (x, other))


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
        if state.tape is not None:
            state.tape.escape(
                f"the result of a comparison ({self.operator}) is used by {use}; only "
                "where(x > y, ...) and products such as x * (x > 0) have a packed form",
                *(x for x in self.inputs if isinstance(x, Variable)),
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
        if any(isinstance(other, Variable) for other in others):
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


class Compare(Function):
    """1 where a comparison holds, else 0: how `trace` records the condition of a `where`."""

    saves = ()
    broadcasts = True

    def forward(self, a, b, operator):
        return COMPARISONS[operator](a, b).astype(np.result_type(a, b, np.float32))

    def backward(self, grad, output, a, b):
        return None, None  # it has no gradient; nothing asks for one


# ------------------------------------------------------------------------------ NumPy's functions

# What stands for an elementwise function of NumPy that is called with a Tensor.
OF_NUMPY = {
    np.add: Add.apply, np.subtract: Sub.apply, np.multiply: Mul.apply, np.divide: Div.apply,
    np.power: Pow.apply, np.negative: lambda x: -x, np.absolute: abs, np.square: lambda x: x * x,
    np.exp: exp, np.log: log, np.sqrt: sqrt, np.sin: sin, np.cos: cos,
    np.maximum: maximum, np.minimum: minimum, np.matmul: matmul,
    **{ufunc: functools.partial(compare, symbol) for symbol, ufunc in COMPARISONS.items()},
}  # fmt: skip
