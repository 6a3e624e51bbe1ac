"""Memory for arrays: aligned to cache lines, and reused when an array is freed.

Vectors of an unaligned array straddle cache lines, and take twice the time to load or store. That
matters most where short arrays of constants are loaded repeatedly, such as four per channel in a
batch norm. Here all but the smallest arrays begin at a cache line.

The operating system provides memory in pages, and fills each with zeros when it is first touched.
For the 33 MB of 64 images of 128 × 32 × 32 numbers this takes as long as a batch norm of them, and
NumPy requests such an array again each time. A training step needs the same few dozen arrays
repeatedly, so all but small ones are kept here: when the last view of an array dies, its memory
waits for the next array of about this size. Reuse needs no search: there are four sizes between one
power of two and the next, with a pool for each.

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

# Free memory by size: dicts whose keys are `_Buffer`s, in the order in which they were returned.
# Each access is a single atomic operation, so no lock is needed, which a forked process could find
# locked for ever.
_free = {}
_clock = itertools.count()
_state = SimpleNamespace(made=0, limit=1 << 30)  # bytes in use or free; most bytes that stay free


def empty(shape: int | Shape, dtype: DTypeLike) -> Array:
    """Create an uninitialised array, as ``np.empty``."""
    plan = _plan(shape, dtype)
    if plan is None:
        return np.empty(shape, dtype)
    free, size, shape, typestr = plan
    if _state.made > _state.limit:
        _let_go()
    try:
        buffer, _ = free.popitem()  # the last one returned, which may still be in a cache
    except KeyError:
        buffer = _new(size)
    buffer.taken = next(_clock)
    owner = _Owner()
    owner.__array_interface__ = {
        "version": 3, "data": (buffer.address, False), "shape": shape, "typestr": typestr,
    }  # fmt: skip
    # The callback that runs when the last view dies must not be Python code: a Ctrl-C at that
    # moment would be raised in it and lost, with a message on stderr. This is a method of a dict,
    # called by C code: the buffer becomes a key, and the weak reference its value.
    owner.back = weakref.ref(owner, functools.partial(free.setdefault, buffer))
    return np.asarray(owner)


@functools.lru_cache(maxsize=4096)  # a training step requests the same arrays each time
def _plan(shape, dtype):
    """Return the pool of an array's size, that size, and what NumPy needs to know of the array.

    Returns None for a small array.
    """
    shape, dtype = shape if isinstance(shape, tuple) else (shape,), np.dtype(dtype)
    size = int(math.prod(shape)) * dtype.itemsize
    if size <= _SMALL:
        return None
    size = _rounded(size)
    return _free.setdefault(size, {}), size, shape, dtype.str


def empty_like(x: Array) -> Array:
    """Create an uninitialised array with the shape, dtype and memory order of another one."""
    if x.flags.c_contiguous:
        return empty(x.shape, x.dtype)
    if x.nbytes <= _SMALL:
        return np.empty_like(x)
    axes = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    places = sorted(range(x.ndim), key=axes.__getitem__)
    return empty(tuple([x.shape[axis] for axis in axes]), x.dtype).transpose(places)


def aligned(array: Array) -> Array:
    """Copy an array, C-contiguous and aligned to a cache line; for constants that kernels load."""
    copy = _lines(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def keep(limit: int) -> int:
    """Set how much freed memory is cached for reuse.

    Parameters
    ----------
    limit : int
        Bytes; initially 2**30. Anything beyond is returned to the system, now and whenever an array
        is created; with 0 everything.

    Returns
    -------
    int
        The previous limit.

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
    """Round up to one of four sizes per doubling; at most a fifth of it is unused."""
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
    """Allocate memory that begins at a cache line."""
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size]


def _let_go():
    """Free the least recently used buffers until the rest is within the limit."""
    while sum(size * len(free) for size, free in list(_free.items())) > _state.limit:
        try:
            oldest = [(next(iter(free)), size) for size, free in list(_free.items()) if free]
            buffer, size = min(oldest, key=lambda pair: pair[0].taken)
            del _free[size][buffer]
        except (KeyError, RuntimeError, StopIteration, ValueError):  # another thread took it
            continue
        _state.made -= size


class _Buffer:
    """A buffer of one of the sizes, in use or free."""

    __slots__ = ("address", "memory", "taken")


class _Owner:
    """Owner of a buffer: when its last view dies, the buffer returns to the pool."""

    __slots__ = ("__array_interface__", "__weakref__", "back")
