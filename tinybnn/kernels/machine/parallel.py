"""A single parallel loop for all kernels.

Numba compiles a parallel loop together with the kernel that it calls, twice: a kernel that takes a
second to compile takes three more in a parallel version. Here a kernel is used as it is:

    share_out(worker, shares, *arguments)

calls ``worker(first, end, task, *arguments)`` for each share of the work, and `bind` turns that
into a callable for repeated calls on the same arrays. The threads receive the address of a small
function, compiled together with the kernel, that calls it, and the kernel's arguments in a buffer.
Unpacking two dozen arrays, as a call from Python does, costs as much as the work of a small layer,
so repeated calls use this way even with a single share.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numba import _dispatcher, _helperlib, types

from tinybnn.kernels.machine import threads
from tinybnn.kernels.machine.pipeline import start_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_CALLS_FROM_PYTHON = 3
_starts = {}  # worker, fingerprints of its arguments -> the address of its start, and the slots


@functools.lru_cache(maxsize=1024)
def shares(items: int, tasks: int, unit: int = 1) -> NDArray[np.int64]:
    """Divide items into shares of whole units.

    Returns
    -------
    (tasks, 2) int64
        First and end item of each share; must not be written to.
    """
    bounds = [task * (items // unit) // tasks * unit for task in range(tasks)]
    return np.array(list(zip(bounds, [*bounds[1:], items], strict=True)), np.int64)


def share_out(worker: Callable[..., None], shares: NDArray[np.int64], *arguments: Any) -> None:
    """Call ``worker(first, end, task, *arguments)`` for each share, one thread each.

    Parameters
    ----------
    worker : function compiled by `simd.kernel` or `simd.subkernel`
        Returns nothing. Tasks must not write to the same memory.
    shares : (tasks, 2) int64
    arguments
        Arrays, numbers, and tuples of them.
    """
    if len(shares) == 1 or numba.config.DISABLE_JIT:
        for task, (first, end) in enumerate(shares.tolist()):
            worker(first, end, task, *arguments)
    else:
        _Addressed(worker, shares, arguments)()


def bind(
    worker: Callable[..., None], shares: NDArray[np.int64], *arguments: Any
) -> Callable[[], None]:
    """Prepare `share_out` for repeated calls: a callable without arguments.

    On one thread, the first calls use Numba's dispatcher: resolving the addresses costs more than a
    few calls, and the callable may be used only once.
    """

    def in_python():
        for task, (first, end) in enumerate(shares.tolist()):
            worker(first, end, task, *arguments)

    if numba.config.DISABLE_JIT:
        return in_python
    calls, addressed = itertools.count(), []

    def call():
        if addressed:
            addressed[0]()
        elif (len(shares) == 1 or threads.count() == 1) and next(calls) < _CALLS_FROM_PYTHON:
            in_python()
        else:
            addressed.append(_Addressed(worker, shares, arguments))
            addressed[0]()

    return call


class _Addressed:
    """A kernel with its shares and arguments, called by address."""

    def __init__(self, worker, shares, arguments):
        self.is_single, (self.start, buffer) = len(shares) == 1, _addresses_of(worker, arguments)
        table = np.empty((len(shares), 3), np.int64)
        table[:, :2], table[:, 2] = shares, range(len(shares))
        rows = np.array([table.ctypes.data, len(table), table.strides[0]])
        self.kept = arguments, buffer, table, rows  # kept alive, since only addresses are passed
        at, step = rows.ctypes.data, rows.itemsize
        self.operands = at, at + step, at + 2 * step, buffer.ctypes.data

    @functools.cached_property
    def alone(self):
        return _START(self.start)

    def __call__(self):
        # There may be fewer threads than at its creation, as in a forked process.
        if self.is_single or threads.count() == 1:
            self.alone(*self.operands)
        else:
            threads.run(self.start, *self.operands)


_START = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)


def _addresses_of(worker, arguments):
    """Return the address of the kernel's start function, and its arguments in a buffer.

    The buffer contains addresses of arrays, which the caller must keep alive.
    """
    worker = getattr(worker, "kernel", worker)  # the kernel of a part
    # One by one: Numba 0.60 gives long tuples that differ at the beginning the same fingerprint.
    key = worker, *map(_dispatcher.compute_fingerprint, arguments)
    if key not in _starts:
        signature = (types.int64,) * 3 + numba.typeof(arguments).types
        if signature not in worker.overloads:
            worker.compile(signature)
        _starts[key] = start_of(worker.overloads[signature]), _slots(arguments)
    start, slots = _starts[key]
    buffer = np.zeros(slots, np.int64)
    _put(arguments, buffer)
    return start, buffer


def _slots(argument):
    """Return how many 8-byte numbers a kernel takes for an argument."""
    if isinstance(argument, tuple):
        return sum(map(_slots, argument))
    return _OF_ARRAY + 2 * argument.ndim if isinstance(argument, np.ndarray) else 1


_OF_ARRAY = 5  # in addition to the sizes and strides of its axes
_describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(
    _helperlib.c_helpers["adapt_ndarray"]
)


def _put(arguments, buffer):
    """Write arguments into a buffer; the elements of tuples follow one another."""
    slot, address, pending = 0, buffer.ctypes.data, [*reversed(arguments)]
    while pending:
        argument = pending.pop()
        if isinstance(argument, tuple):
            pending.extend(reversed(argument))
        elif isinstance(argument, np.ndarray):
            if _describe(argument, address + 8 * slot):
                raise AssertionError("share_out: an array that Numba cannot describe")
            slot += _OF_ARRAY + 2 * argument.ndim
        else:
            if isinstance(argument, int):
                buffer[slot] = argument
            else:
                number = np.asarray(argument)
                buffer[slot : slot + 1].view(number.dtype)[0] = number
            slot += 1
