"""Memory for arrays: at the beginning of a cache line, and used again when an array is gone.

An array that begins anywhere has vectors that lie across two cache lines, which costs twice the
time to load or to store them. That counts most where short arrays of constants are loaded again and
again, four for each channel of a batch norm. Here all but the smallest begin with a line.

The operating system hands memory out in pages, and fills each with zeros when it is touched first.
For the 33 MB of 64 images of 128 × 32 × 32 numbers this takes as long as a batch norm of them, and
NumPy asks for such an array anew each time. A training step needs the same few dozen arrays again
and again, so all but small ones are kept here: when the last view of an array is gone, its memory
waits for the next array of about this size. To find it takes no search: memory comes in four sizes
between one power of two and the next, and what is free of each size is kept apart.

    >>> import numpy as np
    >>> first = empty((1024, 1000), np.float32)
    >>> place = first.ctypes.data
    >>> del first
    >>> empty((1024, 1024), np.float32).ctypes.data == place
    True
"""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from tinybnn.typing import Array, Shape

_LINE = 64  # bytes of a cache line, and of the longest vector
_SMALL = 1 << 9  # bytes of the largest array that is not worth it

# Free memory by its size: dicts whose keys are `_Buffer`s, in the order in which they came back.
# Anything done with them is a single operation, so no lock is needed, which a forked process could
# find closed for ever.
_free = {}
_clock = itertools.count()
_state = SimpleNamespace(made=0, limit=1 << 30)  # bytes in use or free; most bytes that stay free


def empty(shape: int | Shape, dtype: DTypeLike) -> Array:
    """An array without values, as ``np.empty``."""
    plan = _plan(shape, dtype)
    if plan is None:
        return np.empty(shape, dtype)
    free, size, shape, typestr = plan
    if _state.made > _state.limit:
        _let_go()
    try:
        buffer, _ = free.popitem()  # the last one that came back: it may still be in a cache
    except KeyError:
        buffer = _new(size)
    buffer.taken = next(_clock)
    owner = _Owner()
    owner.__array_interface__ = {
        "version": 3, "data": (buffer.address, False), "shape": shape, "typestr": typestr,
    }  # fmt: skip
    # What runs when the last view is gone must not be Python code: a Ctrl-C at that moment would be
    # raised in it, and lost with a message on stderr. This is a method of a dict, called by C code:
    # the buffer becomes a key, and the weak reference its value.
    owner.back = weakref.ref(owner, functools.partial(free.setdefault, buffer))
    return np.asarray(owner)


@functools.lru_cache(maxsize=4096)  # a training step asks for the same arrays again and again
def _plan(shape, dtype):
    """The free memory of an array's size, that size, and what NumPy has to know of the array.

    None for a small array.
    """
    shape, dtype = shape if isinstance(shape, tuple) else (shape,), np.dtype(dtype)
    size = int(math.prod(shape)) * dtype.itemsize
    if size <= _SMALL:
        return None
    size = _rounded(size)
    return _free.setdefault(size, {}), size, shape, dtype.str


def empty_like(x: Array) -> Array:
    """An array without values of the shape and dtype of another one, in its order in memory."""
    if x.flags.c_contiguous:
        return empty(x.shape, x.dtype)
    if x.nbytes <= _SMALL:
        return np.empty_like(x)
    axes = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    places = sorted(range(x.ndim), key=axes.__getitem__)
    return empty(tuple([x.shape[axis] for axis in axes]), x.dtype).transpose(places)


def on_lines(array: Array) -> Array:
    """A copy, C-contiguous, that begins with a cache line; for constants that kernels load."""
    copy = _lines(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def keep(limit: int) -> int:
    """Set how much free memory is kept for reuse.

    Parameters
    ----------
    limit : int
        Bytes, at first 2**30. What is beyond goes back to the system, now and whenever an array is
        made; with 0 all of it.

    Returns
    -------
    int
        The limit before.

    Raises
    ------
    ValueError
        If the limit is negative.
    """
    if limit < 0:
        raise ValueError(f"keep: limit must be a number of bytes >= 0, got {limit!r}")
    before, _state.limit = _state.limit, limit
    _let_go()
    return before


def _rounded(size):
    """The next of the four sizes in each doubling; at most a fifth of it is left over."""
    step = 1 << (size - 1).bit_length() - 3
    return -(-size // step) * step


def _new(size):
    """Memory that is not in use."""
    buffer = _Buffer()
    buffer.memory = _lines(size)
    buffer.address = buffer.memory.ctypes.data
    _state.made += size
    return buffer


def _lines(size):
    """New memory that begins with a cache line."""
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size]


def _let_go():
    """Give back what was taken longest ago, until the rest is within the limit."""
    while sum(size * len(free) for size, free in list(_free.items())) > _state.limit:
        try:
            oldest = [(next(iter(free)), size) for size, free in list(_free.items()) if free]
            buffer, size = min(oldest, key=lambda pair: pair[0].taken)
            del _free[size][buffer]
        except (KeyError, RuntimeError, StopIteration, ValueError):  # another thread took it
            continue
        _state.made -= size


class _Buffer:
    """Memory of one of the sizes, in use or free."""

    __slots__ = ("address", "memory", "taken")


class _Owner:
    """Base of all views of an array; its weak reference takes the buffer back."""

    __slots__ = ("__array_interface__", "__weakref__", "back")
