"""Memory for arrays: at the beginning of a cache line, and used again when an array is gone.

An array that begins anywhere has vectors that lie across two cache lines, which costs twice the
time to load or to store them. That counts most where short arrays of constants are loaded again and
again, four for each channel of a batch norm. Here all but the smallest begin with a line.

The operating system hands memory out in pages, and fills each with zeros when it is touched first.
For the 33 MB of 64 images of 128 × 32 × 32 numbers this takes as long as a batch norm of them, and
NumPy asks for such an array anew each time. A training step needs the same few dozen arrays again
and again, so all but small ones are kept here: when the last view of an array is gone, its memory
waits for the next array of about this size. To find it takes no search: memory comes in four sizes
between one power of two and the next, and there is a stack of each.

    >>> import numpy as np
    >>> first = empty((1024, 1000), np.float32)
    >>> place = first.ctypes.data
    >>> del first
    >>> empty((1024, 1024), np.float32).ctypes.data == place
    True
"""

import functools
import itertools
import math
from types import SimpleNamespace

import numpy as np

_LINE = 64  # bytes of a cache line, and of the longest vector
_SMALL = 1 << 9  # bytes of the largest array that is not worth it

# Memory that waits, by its size: stacks of (when it came, address, memory). All that is done with
# them is a single operation of a dict or a list, so no lock is needed, which a forked process could
# find closed for ever.
_free = {}
_clock = itertools.count()
_state = SimpleNamespace(made=0, limit=1 << 30)  # bytes in use or waiting; that may wait


def empty(shape, dtype):
    """An array without values, as ``np.empty``."""
    plan = _plan(shape, dtype)
    if plan is None:
        return np.empty(shape, dtype)
    stack, size, shape, typestr = plan
    try:
        _, address, memory = stack.pop()  # the last used may still be in a cache
    except IndexError:
        address, memory = _new(size)
    kept = _Kept()
    kept.stack, kept.address, kept.memory = stack, address, memory
    kept.__array_interface__ = {
        "version": 3, "data": (address, False), "shape": shape, "typestr": typestr,
    }  # fmt: skip
    return np.asarray(kept)


@functools.lru_cache(maxsize=4096)  # a training step asks for the same arrays again and again
def _plan(shape, dtype):
    """Where memory of an array's size waits, that size, and what NumPy has to know of the array.

    None for a small array.
    """
    shape, dtype = shape if isinstance(shape, tuple) else (shape,), np.dtype(dtype)
    size = int(math.prod(shape)) * dtype.itemsize
    if size <= _SMALL:
        return None
    size = _rounded(size)
    return _free.setdefault(size, []), size, shape, dtype.str


def empty_like(x):
    """An array without values of the shape and dtype of another one, in its order in memory."""
    if x.flags.c_contiguous:
        return empty(x.shape, x.dtype)
    if x.nbytes <= _SMALL:
        return np.empty_like(x)
    axes = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    places = sorted(range(x.ndim), key=axes.__getitem__)
    return empty(tuple([x.shape[axis] for axis in axes]), x.dtype).transpose(places)


def on_lines(array):
    """A copy, C-contiguous, that begins with a cache line; for constants that kernels load."""
    copy = _lines(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


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
    """Memory that nobody had yet: (address, memory)."""
    memory = _lines(size)
    _state.made += size
    return memory.ctypes.data, memory


def _lines(size):
    """New memory that begins with a cache line."""
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size]


def _let_go(free=_free, state=_state):
    """Give back what has waited longest, until the rest is within the limit."""
    while sum(size * len(stack) for size, stack in list(free.items())) > state.limit:
        try:
            _, size = min((stack[0][0], size) for size, stack in list(free.items()) if stack)
            free[size].pop(0)
        except (IndexError, ValueError):  # another thread had it first
            continue
        state.made -= size


class _Kept:
    """What all views of an array look at; when they are gone, its memory waits for the next."""

    __slots__ = ("__array_interface__", "address", "memory", "stack")

    # Defaults, since at the end of a process names are gone.
    def __del__(self, clock=_clock, state=_state, let_go=_let_go):
        self.stack.append((next(clock), self.address, self.memory))
        if state.made > state.limit:
            let_go()
