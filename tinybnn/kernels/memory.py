"""Memory for arrays: at the beginning of a cache line, and used again when an array is gone.

An array that begins anywhere has vectors that lie across two cache lines, which costs twice the
time to load or to store them: 10% of a product of short rows. Here all but small ones begin with a
line.

The operating system hands memory out in pages, and fills each with zeros when it is touched first.
For the 33 MB of 64 images of 128 × 32 × 32 numbers this takes as long as a batch norm of them, and
NumPy asks for such an array anew each time. A training step needs the same few dozen arrays again
and again, so large ones are kept here: when the last view of an array is gone, its memory waits for
the next array of about this size.

    >>> import numpy as np
    >>> first = empty((1024, 1024), np.float32)
    >>> place = first.ctypes.data
    >>> del first
    >>> empty((1024, 1000), np.float32).ctypes.data == place
    True
"""

import math

import numpy as np

_LINE = 64  # bytes of a cache line, and of the longest vector
_SMALL, _LARGE = 1 << 13, 1 << 18  # bytes; arrays in between get lines, only larger ones are kept
_WASTE = 1.25  # how much larger than an array its memory may be

# Memory that waits, the longest waiting first, by its address. All that is done with it is a single
# operation of a dict, so no lock is needed, which a forked process could find closed for ever.
_free = {}
_limit = 1 << 30


def empty(shape, dtype):
    """An array without values, as ``np.empty``."""
    dtype = np.dtype(dtype)
    shape = shape if isinstance(shape, (tuple, list)) else (shape,)
    size = math.prod(shape) * dtype.itemsize
    if size <= _SMALL:  # to find a line takes a microsecond, more than it saves
        return np.empty(shape, dtype)
    memory = _lines(size) if size < _LARGE else np.asarray(_Kept(_take(size)))[:size]
    return memory.view(dtype).reshape(shape)


def empty_like(x):
    """An array without values of the shape and dtype of another one, in its order in memory."""
    if x.flags.c_contiguous or x.nbytes < _LARGE:
        return empty(x.shape, x.dtype) if x.flags.c_contiguous else np.empty_like(x)
    axes = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    return empty([x.shape[axis] for axis in axes], x.dtype).transpose(np.argsort(axes))


def keep(limit):
    """How much memory may wait to be used again.

    Parameters
    ----------
    limit : int
        Bytes, at first 2**30. What is beyond goes back to the system, and with 0 all of it.

    Returns
    -------
    int
        The limit before.

    Raises
    ------
    ValueError
        If the limit is negative.
    """
    global _limit
    if limit < 0:
        raise ValueError(f"keep: limit must be a number of bytes >= 0, got {limit!r}")
    before, _limit = _limit, limit
    _let_go()
    return before


def _let_go():
    """Give back what has waited longest, until the rest is within the limit."""
    while sum(map(len, list(_free.values()))) > _limit:
        _free.pop(next(iter(list(_free)), None), None)


def _wait(memory, free=_free, let_go=_let_go):
    free[memory.__array_interface__["data"][0]] = memory
    let_go()


class _Kept:
    """What all views of an array look at; when they are gone, its memory waits for the next."""

    __slots__ = ("__array_interface__", "memory")

    def __init__(self, memory):
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self, wait=_wait):  # a default, since at the end of a process names are gone
        wait(self.memory)


def _take(size):
    """Memory of so many bytes, or somewhat more."""
    for address, memory in reversed(list(_free.items())):  # the last used may still be in a cache
        if size <= len(memory) <= _WASTE * size and _free.pop(address, None) is not None:
            return memory
    return _lines(size)


def _lines(size):
    """New memory that begins with a cache line."""
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size]
