"""Maxima, sorting and the indices of both, under PyTorch's names.

The functions take a Tensor or an array of any shape. Indices are int64 arrays. Values are a Tensor
or an array as the input is; their gradient goes to the elements that the indices select.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinybnn.autograd.engine import Variable, as_array, state
from tinybnn.autograd.operations import (
    Index,
    SizeError,
    amax,
    amin,
    maximum,
    minimum,
    normalized_dims,
)
from tinybnn.autograd.shapes import squeeze

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import TensorLike, V


class Ordered(NamedTuple):
    """The result of `sort`, `topk`, and `max` and `min` with a dim.

    Attributes
    ----------
    values : Tensor or array, as the input is
    indices : int64 array of the shape of values
    """

    values: Any
    indices: NDArray[np.int64]


def _array(x: V, name):
    """The array of x, to compute indices of; inside `trace` these are noted as an `Escape`."""
    if state.tape is not None and isinstance(x, Variable):
        state.tape.escape(
            f"the indices of {name} depend on values of the input, and would be fixed; use "
            "operations without indices, such as amax or maximum, or apply it to the result",
            x,
        )
    return as_array(x)


def gather(x: V, dim: int, index: ArrayLike) -> V:
    """Pick elements along an axis: ``result[i, j] = x[i, index[i, j]]`` for dim 1 of two.

    Parameters
    ----------
    x : Tensor or array, of any shape
    dim : int
    index : int array
        With as many axes as x, and no longer than x in any axis but `dim`.

    Returns
    -------
    Tensor or array of the shape of `index`
    """
    index = np.asarray(index)
    (dim,) = normalized_dims(dim, np.ndim(as_array(x)))
    if index.ndim != np.ndim(as_array(x)) or index.dtype.kind not in "iu":
        raise SizeError(
            f"gather: index must be an int array of {np.ndim(as_array(x))} axes, got {index.dtype} "
            f"of shape {index.shape}"
        )
    indices = list(np.ogrid[tuple(slice(n) for n in index.shape)])
    indices[dim] = index
    return Index.apply(x, index=tuple(indices))


def argmax(x: TensorLike, dim: int | None = None, keepdim: bool = False) -> NDArray[np.int64]:
    """Find the index of the first maximum along an axis (by default in the flattened x): int64."""
    return np.argmax(_array(x, "argmax"), dim, keepdims=bool(keepdim))


def argmin(x: TensorLike, dim: int | None = None, keepdim: bool = False) -> NDArray[np.int64]:
    """Find the index of the first minimum along an axis (by default in the flattened x): int64."""
    return np.argmin(_array(x, "argmin"), dim, keepdims=bool(keepdim))


def max(x: V, dim: TensorLike | None = None, keepdim: bool = False) -> Any:
    """Compute the maximum of all elements; along an axis `dim`; or of x and a second Tensor.

    The result has the shape (); with `dim` it is an `Ordered` with the axis removed unless
    `keepdim`; with a second Tensor it is that of `maximum`.

    Equal maxima of all elements share the gradient; with `dim` the first one gets it.
    """
    return _extreme(x, dim, keepdim, amax, maximum, argmax)


def min(x: V, dim: TensorLike | None = None, keepdim: bool = False) -> Any:
    """Compute the minimum of all elements; along an axis `dim`; or of x and a second Tensor.

    The result has the shape (); with `dim` it is an `Ordered` with the axis removed unless
    `keepdim`; with a second Tensor it is that of `minimum`.

    Equal minima of all elements share the gradient; with `dim` the first one gets it.
    """
    return _extreme(x, dim, keepdim, amin, minimum, argmin)


def _extreme(x, dim, keepdim, reduce, elementwise, index_of):
    if dim is None:
        return reduce(x)
    if isinstance(dim, Variable | np.ndarray):
        return elementwise(x, dim)
    normalized_dims(dim, np.ndim(as_array(x)))
    indices = index_of(x, dim, keepdim=True)
    values = gather(x, dim, indices)
    if keepdim:
        return Ordered(values, indices)
    return Ordered(squeeze(values, dim), indices.squeeze(dim))


def argsort(x: TensorLike, dim: int = -1, descending: bool = False) -> NDArray[np.int64]:
    """Find the indices that sort x along an axis: int64, of x's shape.

    Equal elements keep their order. NaN comes last, or first when descending.
    """
    array = _array(x, "argsort")
    (dim,) = normalized_dims(dim, array.ndim)
    if not descending:
        return np.argsort(array, dim, kind="stable")
    indices = np.argsort(np.flip(array, dim), dim, kind="stable")
    return array.shape[dim] - 1 - np.flip(indices, dim)


def sort(x: TensorLike, dim: int = -1, descending: bool = False) -> Ordered:
    """Sort x along an axis: an `Ordered` of values and their former indices, of x's shape."""
    indices = argsort(x, dim, descending)
    return Ordered(gather(x, dim, indices), indices)


def topk(x: TensorLike, k: int, dim: int = -1, largest: bool = True) -> Ordered:
    """Find the k largest (or smallest) elements along an axis, in order: an `Ordered`."""
    (axis,) = normalized_dims(dim, np.ndim(as_array(x)))
    size = np.shape(as_array(x))[axis]
    if not 0 <= k <= size:
        raise SizeError(f"topk: k must be in 0..{size}, the size of dim {dim}, got {k}")
    indices = np.take(argsort(x, axis, descending=largest), range(k), axis)
    return Ordered(gather(x, axis, indices), indices)
