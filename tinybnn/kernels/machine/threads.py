"""Parallel loops: who may start them, and with how many threads.

Numba has three libraries for parallel loops, its *threading layers*; it uses the first available
one of TBB, OpenMP and its own ``workqueue``, or the one that ``NUMBA_THREADING_LAYER`` names. Two
of them end the whole process in some case:

- ``workqueue``, which is always available, if two Python threads run parallel loops at the same
  time. Every loop therefore acquires one lock.
- GNU OpenMP, if a process that has started it forks and the child runs a parallel loop; a child of
  the child waits forever. `count` is 1 there.

`parallel` divides work into as many tasks as `tasks_for` says, and passes them to `run`. The
threads start when they are first needed: not on import, and not for small work.

The BLAS library behind NumPy's ``@`` has its own threads. Two sets of threads on the same cores
slow each other down: OpenBLAS's threads keep spinning for a while after each product, and a product
of 75 microseconds was observed to take 12 milliseconds. So training leaves the cores to the kernels
and runs BLAS on one thread (`one_blas_thread`).
"""

import contextvars
import ctypes
import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numba
import threadpoolctl

# Re-entrant, so that a kernel may be called while the lock is held.
_lock = threading.RLock()
_forked_from_openmp = False


def most() -> int:
    """Return the number of threads Numba starts with: ``NUMBA_NUM_THREADS``, or one per core."""
    return numba.config.NUMBA_NUM_THREADS


def count() -> int:
    """Return the number of threads that a kernel called now may use.

    This is the number set by `num_threads` or ``numba.set_num_threads`` for this Python thread,
    initially `most`; and 1 in a process that cannot start any, because it was forked from one that
    used OpenMP.
    """
    if _forked_from_openmp:
        return 1
    try:
        numba.threading_layer()
    except ValueError:  # they have not started; asking for their number would start them
        return most()
    return numba.get_num_threads()


def layer() -> str | None:
    """Return the threading layer in use: "tbb", "omp" or "workqueue"; None before threads start."""
    try:
        return numba.threading_layer()
    except ValueError:
        return None


# Seconds of work that are worth an additional thread. A parallel loop costs a start and a wait,
# which depend on the threading layer: empty, it takes 3 microseconds with OpenMP and 65 with
# workqueue, whose threads sleep in between and can be some hundred microseconds late.
_WORTH_A_THREAD = {"omp": 10e-6, "tbb": 20e-6, "workqueue": 500e-6}


def tasks_for(seconds: float) -> int:
    """Return the number of tasks for work that takes one core ``seconds``: from 1 to `count`."""
    if seconds < 2 * min(_WORTH_A_THREAD.values()):
        return 1
    # Threads that have not started yet cost more to start than any loop.
    worth = _WORTH_A_THREAD[layer() or "omp"]
    return max(1, min(count(), int(seconds / worth)))


def run(function: int, rows: int, count: int, step: int, data: int) -> None:
    """Call a compiled function for all rows of a table, unless another Python thread does so.

    Waits for the other thread then. The threads call it as ``function(rows, count, step, data)``,
    each for some rows.

    Parameters
    ----------
    function, rows, count, step, data : int
        Addresses: of the function, of the address of the first row, of the number of rows, of the
        bytes of a row, and of the function's other data.
    """
    with _lock:
        _loop()(function, rows, count, step, data, 0, 1, numba.get_num_threads())


@functools.cache
def _start():
    """Make Numba load its threading layer and start the threads.

    A thread that waits at the end of a parallel loop spins, in GNU OpenMP by default for 300,000
    turns: some milliseconds. If another process occupies the other core, the spinning thread keeps
    its core from the one it waits for, and training steps took several times as long. 5,000 turns
    mostly suffice until the next loop of the same computation begins; with fewer, steps of many
    small loops lose time to waking (`GOMP_SPINCOUNT=1000 tinybnn bench train` shows how much). The
    library reads the number once, while it is loaded, so the environment of this process and its
    children is restored afterwards.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & {*os.environ}:  # the user has decided
        numba.get_num_threads()
        return
    os.environ["GOMP_SPINCOUNT"] = "5000"
    try:
        numba.get_num_threads()
    finally:
        os.environ.pop("GOMP_SPINCOUNT", None)


@functools.cache
def _loop():
    """Return the parallel loop of the threading layer."""
    _start()
    name = {"omp": "omppool", "tbb": "tbbpool"}.get(numba.threading_layer(), "workqueue")
    library = importlib.import_module(f"numba.np.ufunc.{name}")
    pointers, numbers = [ctypes.c_void_p] * 5, [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    return ctypes.CFUNCTYPE(None, *pointers, *numbers)(library.parallel_for)


@contextmanager
def num_threads(n: int | None) -> Iterator[None]:
    """Let kernels use ``n`` threads inside a ``with`` block, and restore the number after.

    Numba keeps the number per Python thread: kernels called from other Python threads are not
    affected. No result of this library depends on it.

    Parameters
    ----------
    n : int or None
        From 1 to `most`. None leaves the number as it is.

    Raises
    ------
    ValueError
        If ``n`` is outside that range.
    """
    if n is None:
        yield
        return
    if n not in range(1, most() + 1):
        raise ValueError(f"num_threads: n must be from 1 to {most()}, got {n!r}")
    _start()
    previous = numba.get_num_threads()
    numba.set_num_threads(int(n))
    try:
        yield
    finally:
        numba.set_num_threads(previous)


def on_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> None:
    """Call a function for each item, on `count` Python threads; kernels use one thread in it.

    Raises
    ------
    Exception
        The first one that the function raises, after all threads have ended.
    """
    pending, context = iter(items), contextvars.copy_context()  # with the settings of np.errstate
    lock = threading.Lock()

    def work():
        with num_threads(1):
            while True:
                with lock:
                    item = next(pending, _END)
                if item is _END:
                    return
                function(item)

    if not items:
        return
    with ThreadPoolExecutor(max(1, count() - 1)) as pool:
        others = [pool.submit(context.copy().run, work) for _ in range(count() - 1)]
        work()
    for other in others:
        other.result()


_END = object()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run BLAS on the calling thread only inside a ``with`` block, in the whole process.

    Then the sums of a product have one order, so its result does not depend on the number of
    threads.
    """
    with _libraries(len(sys.modules)).limit(limits=1, user_api="blas"):
        yield


@functools.lru_cache(maxsize=1)  # finding them takes five milliseconds, as long as a short training
def _libraries(modules):
    """Find the BLAS libraries of this process; the number of Python modules is the cache's key."""
    return threadpoolctl.ThreadpoolController()


def _after_fork_in_child() -> None:
    """Reset the lock in a child, where the thread that may have held it does not exist."""
    global _lock, _forked_from_openmp
    _lock = threading.RLock()
    _forked_from_openmp = _forked_from_openmp or layer() == "omp"


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
