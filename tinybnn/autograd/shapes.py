"""Shapes and parts of Tensors and arrays of any shape, under PyTorch's names.

The result is a Tensor or an array, as the input is, and has its dtype.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.autograd.engine import as_array
from tinybnn.autograd.operations import (
    Index,
    Pad,
    SizeError,
    broadcast_to,
    normalized_dims,
    reshape,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinybnn.typing import Dims, V


def clone(x: V) -> V:
    """Copy x of any shape; the gradient passes through."""
    # Padding with 1.0 keeps "all elements are signs" true for the compiler.
    return Pad.apply(x, widths=((0, 0),) * np.ndim(as_array(x)), value=1.0)


def squeeze(x: V, dim: Dims = None) -> V:
    """Remove those of the axes `dim` that have size 1 (by default all of size 1)."""
    shape = np.shape(as_array(x))
    dims = normalized_dims(dim, len(shape))
    return reshape(x, [n for d, n in enumerate(shape) if n != 1 or d not in dims])


def unsqueeze(x: V, dim: int) -> V:
    """Insert an axis of size 1 at `dim`; -1 appends it."""
    shape = np.shape(as_array(x))
    (dim,) = normalized_dims(dim, len(shape) + 1)
    return reshape(x, (*shape[:dim], 1, *shape[dim:]))


def expand(x: V, sizes: Sequence[int]) -> V:
    """Repeat along axes of size 1 and new leading axes to `sizes`, as a view; -1 keeps a size."""
    shape, sizes = np.shape(as_array(x)), tuple(sizes)
    before = max(0, len(sizes) - len(shape))
    kept = tuple(
        [n if size == -1 else size for size, n in zip(sizes[before:], shape, strict=False)]
    )
    fits = [n in (1, size) for n, size in zip(shape, kept, strict=False)]
    if len(sizes) < len(shape) or min(sizes[:before], default=0) < 0 or not all(fits):
        raise SizeError(
            f"expand: {shape} does not fit into {sizes}; only axes of size 1 and new leading ones "
            "can be repeated"
        )
    return broadcast_to(x, sizes[:before] + kept)


def repeat(x: V, sizes: Sequence[int]) -> V:
    """Repeat the whole array ``sizes[i]`` times along axis i; extra sizes add leading axes.

    This is NumPy's ``tile``; NumPy's ``repeat`` is PyTorch's ``repeat_interleave``.
    """
    shape, sizes = np.shape(as_array(x)), tuple(sizes)
    if len(sizes) < len(shape) or any(n < 0 for n in sizes):
        raise SizeError(
            f"repeat: expects at least {len(shape)} sizes >= 0, one for each axis, got {sizes}"
        )
    shape = (1,) * (len(sizes) - len(shape)) + shape
    # Broadcast along an extra axis for each axis that is repeated more than once.
    pairs = [
        ((1, n), (r, n)) if r != 1 else ((n,), (n,)) for n, r in zip(shape, sizes, strict=True)
    ]
    before, after = (tuple(itertools.chain(*parts)) for parts in zip(*pairs, strict=True))
    result = broadcast_to(reshape(x, before), after) if before != after else x
    return reshape(result, [n * r for n, r in zip(shape, sizes, strict=True)])


def split(x: V, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[V, ...]:
    """Cut along an axis into parts of one size (the last may be smaller), or of a list of sizes.

    Returns
    -------
    tuple of Tensors or arrays
        Each has the shape of x except along `dim`.
    """
    shape = np.shape(as_array(x))
    (dim,) = normalized_dims(dim, len(shape))
    size, sections = shape[dim], split_size_or_sections
    if isinstance(sections, int | np.integer):
        if sections < 1:
            raise SizeError(f"split: the size of a part must be >= 1, got {sections}")
        ends = [*range(sections, size, sections), size]
    else:
        ends = list(itertools.accumulate(sections))
        if any(n < 0 for n in sections) or ends[-1:] != [size]:
            raise SizeError(
                f"split: expects sizes >= 0 that add up to {size}, the size of dim {dim}, got "
                f"{list(sections)}"
            )
    before = (slice(None),) * dim
    return tuple(
        Index.apply(x, index=(*before, slice(start, end)))
        for start, end in zip([0, *ends], ends, strict=False)
    )


def chunk(x: V, chunks: int, dim: int = 0) -> tuple[V, ...]:
    """Cut along an axis into at most `chunks` parts of one size; the last may be smaller.

    Returns
    -------
    tuple of Tensors or arrays
        Each has the shape of x except along `dim`.
    """
    if chunks < 1:
        raise SizeError(f"chunk: chunks must be >= 1, got {chunks}")
    (axis,) = normalized_dims(dim, np.ndim(as_array(x)))
    return split(x, max(1, -(-np.shape(as_array(x))[axis] // chunks)), dim)
