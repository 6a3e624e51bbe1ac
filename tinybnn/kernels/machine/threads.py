"""Who may start parallel loops, and how many threads they get.

Numba has three libraries for parallel loops, its *threading layers*; it takes the first that
is there of TBB, OpenMP and its own ``workqueue``, or the one that ``NUMBA_THREADING_LAYER`` names.
Two of them have a case in which they end the whole process:

- ``workqueue``, the one that is always there, when two Python threads run parallel loops at the
  same time. Every loop therefore passes through one lock.
- GNU OpenMP, when a process that has started it forks and the child runs a parallel loop; in
  a child of the child it waits forever. There `count` is 1.

`parallel` shares work out among as many tasks as `tasks_for` says, and hands them to `run`. The
threads start when they are needed first: not on import, and not for small work.

The BLAS library behind NumPy's ``@`` has threads of its own. Two sets of threads on the same cores
hinder each other: those of OpenBLAS go on spinning for a while after each product, and a product of
75 microseconds was seen to take 12 milliseconds. So training leaves the cores to the kernels and
takes BLAS on one thread (`one_blas_thread`).
"""

import ctypes
import functools
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import threadpoolctl

# Re-entrant, so that a kernel may be called where the lock is held already.
_lock = threading.RLock()
_forked_from_openmp = False


def most() -> int:
    """The number of threads Numba starts with: ``NUMBA_NUM_THREADS``, by default one a core."""
    return numba.config.NUMBA_NUM_THREADS


def count() -> int:
    """The number of threads that a kernel called now may use.

    It is what `num_threads` or ``numba.set_num_threads`` has set for this Python thread, at first
    `most`; and 1 in a process that cannot start any, since it was forked from one that used OpenMP.
    """
    if _forked_from_openmp:
        return 1
    try:
        numba.threading_layer()
    except ValueError:  # they have not started; to ask for their number would do it
        return most()
    return numba.get_num_threads()


def layer() -> str | None:
    """The threading layer in use: "tbb", "omp" or "workqueue"; None before the threads start."""
    try:
        return numba.threading_layer()
    except ValueError:
        return None


# Seconds of work that are worth a further thread. A parallel loop costs a start and a wait, which
# depend on the threading layer: empty, it takes 3 microseconds with OpenMP and 65 with workqueue,
# whose threads sleep meanwhile and can be some hundred microseconds late.
_WORTH_A_THREAD = {"omp": 10e-6, "tbb": 20e-6, "workqueue": 500e-6}


def tasks_for(seconds: float) -> int:
    """Among how many tasks to share out work that one core does in so many seconds.

    From 1 to `count`.
    """
    if seconds < 2 * min(_WORTH_A_THREAD.values()):
        return 1
    # As long as no threads have started, they cost more to start than any loop.
    worth = _WORTH_A_THREAD[layer() or "omp"]
    return max(1, min(count(), int(seconds / worth)))


def run(function: int, rows: int, count: int, step: int, data: int) -> None:
    """Call a compiled function for all rows of a table, when no other Python thread does so.

    The threads call it as ``function(rows, count, step, data)``, each for some rows.

    Parameters
    ----------
    function, rows, count, step, data : int
        Addresses: of the function, of the address of the first row, of the number of rows, of the
        bytes of a row, and of what the function reads besides.
    """
    with _lock:
        _loop()(function, rows, count, step, data, 0, 1, numba.get_num_threads())


@functools.cache
def _start():
    """Let Numba load its threading layer and start the threads.

    A thread that waits at the end of a parallel loop spins, in GNU OpenMP by default for 300,000
    turns: some milliseconds. Where another process has the other core, the spinning thread keeps
    its core from the one it waits for, and training steps took several times as long. 5,000 turns
    are mostly enough until the next loop of the same computation begins; with fewer, steps of many
    small loops lose time to waking (`GOMP_SPINCOUNT=1000 tinybnn bench train` shows how much). The
    library reads the number once, while it is loaded, so the environment of this process and of
    those that it starts stays as it was.
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
    """The parallel loop of the threading layer."""
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


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS run on the calling thread only inside a ``with`` block, in the whole process.

    Then the sums of a product have one order, so its result depends on no number of threads either.
    """
    with _libraries(len(sys.modules)).limit(limits=1, user_api="blas"):
        yield


@functools.lru_cache(maxsize=1)  # to find them takes five milliseconds, as long as a short training
def _libraries(modules):
    """The BLAS libraries of this process, as of so many Python modules: one may bring another."""
    return threadpoolctl.ThreadpoolController()


def _after_fork_in_child() -> None:
    """A child has one thread. Whoever else held the lock when it was forked does not exist here."""
    global _lock, _forked_from_openmp
    _lock = threading.RLock()
    _forked_from_openmp = _forked_from_openmp or layer() == "omp"


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
