"""Maxima, sorting and the indices of both, under PyTorch's names.

Indices are int64 arrays. Values are the elements that the indices name, and so is their gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tinybnn.autograd.engine import Variable, as_array, state
from tinybnn.autograd.operations import Index, SizeError, _dims, amax, amin, maximum, minimum
from tinybnn.autograd.shapes import squeeze


class Ordered(NamedTuple):
    """What `max` and `min` with a dim, `sort` and `topk` give.

    Attributes
    ----------
    values : Tensor, or array of an array
    indices : int64 array
    """

    values: object
    indices: np.ndarray


def _array(x, name):
    """The array whose indices a function gives; inside of `trace` they are noted as lost."""
    if state.tape is not None and isinstance(x, Variable):
        state.tape.escape(
            f"the indices of {name} depend on values of the input, and would be fixed; use "
            "operations without indices, such as amax or maximum, or apply it to the result",
            x,
        )
    return as_array(x)


def gather(x, dim, index):
    """Pick elements along an axis: ``result[i, j] = x[i, index[i, j]]`` for dim 1 of two.

    Parameters
    ----------
    x : Tensor or array
    dim : int
    index : int array
        With as many axes as x; elsewhere than in `dim` no longer than x.
    """
    index = np.asarray(index)
    (dim,) = _dims(dim, np.ndim(as_array(x)))
    if index.ndim != np.ndim(as_array(x)) or index.dtype.kind not in "iu":
        raise SizeError(
            f"gather: index must be an int array of {np.ndim(as_array(x))} axes, got {index.dtype} "
            f"of shape {index.shape}"
        )
    places = list(np.ogrid[tuple(slice(n) for n in index.shape)])
    places[dim] = index
    return Index.apply(x, index=tuple(places))


def argmax(x, dim=None, keepdim=False):
    """The index of the first maximum along an axis (by default in the flattened x): int64."""
    return np.argmax(_array(x, "argmax"), dim, keepdims=bool(keepdim))


def argmin(x, dim=None, keepdim=False):
    """The index of the first minimum along an axis (by default in the flattened x): int64."""
    return np.argmin(_array(x, "argmin"), dim, keepdims=bool(keepdim))


def max(x, dim=None, keepdim=False):
    """The maximum of all elements; with `dim` an `Ordered`; with a second Tensor `maximum`.

    Equal maxima of all elements share the gradient; with `dim` the first one gets it.
    """
    return _extreme(x, dim, keepdim, amax, maximum, argmax)


def min(x, dim=None, keepdim=False):
    """The minimum of all elements; with `dim` an `Ordered`; with a second Tensor `minimum`.

    Equal minima of all elements share the gradient; with `dim` the first one gets it.
    """
    return _extreme(x, dim, keepdim, amin, minimum, argmin)


def _extreme(x, dim, keepdim, of_all, of_two, index_of):
    if dim is None:
        return of_all(x)
    if isinstance(dim, Variable | np.ndarray):
        return of_two(x, dim)
    _dims(dim, np.ndim(as_array(x)))
    indices = index_of(x, dim, keepdim=True)
    values = gather(x, dim, indices)
    if keepdim:
        return Ordered(values, indices)
    return Ordered(squeeze(values, dim), indices.squeeze(dim))


def argsort(x, dim=-1, descending=False):
    """The indices that sort x along an axis: int64. Equal elements keep their order; NaN is last.

    Descending, NaN is first.
    """
    array = _array(x, "argsort")
    (dim,) = _dims(dim, array.ndim)
    if not descending:
        return np.argsort(array, dim, kind="stable")
    indices = np.argsort(np.flip(array, dim), dim, kind="stable")
    return array.shape[dim] - 1 - np.flip(indices, dim)


def sort(x, dim=-1, descending=False):
    """x sorted along an axis, and where its elements were: an `Ordered`."""
    indices = argsort(x, dim, descending)
    return Ordered(gather(x, dim, indices), indices)


def topk(x, k, dim=-1, largest=True):
    """The k largest (or smallest) elements along an axis, in order: an `Ordered`."""
    (axis,) = _dims(dim, np.ndim(as_array(x)))
    size = np.shape(as_array(x))[axis]
    if not 0 <= k <= size:
        raise SizeError(f"topk: k must be in 0..{size}, the size of dim {dim}, got {k}")
    indices = np.take(argsort(x, axis, descending=largest), range(k), axis)
    return Ordered(gather(x, axis, indices), indices)
