"""Who may enter a parallel kernel, and how many threads it gets.

Numba's ``workqueue`` threading layer, the one that is always there, ends the whole process when two
Python threads run parallel kernels at the same time. Every entry of a parallel kernel therefore
passes through one lock::

    with threads.exclusive():
        _parallel_kernel(a, b, out)
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba

# Re-entrant, so that a caller who holds it for a longer stretch can still call kernels.
_LOCK = threading.RLock()


def exclusive() -> threading.RLock:
    """The process-wide re-entrant lock, for a ``with`` statement around a parallel kernel."""
    return _LOCK


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Let parallel kernels use ``n`` threads inside a ``with`` block, and restore the number after.

    Numba keeps the number per Python thread: kernels called from other Python threads are not
    affected. No result of this library depends on it.

    Parameters
    ----------
    n : int
        From 1 to ``numba.config.NUMBA_NUM_THREADS``, the number of threads Numba started with
        (the environment variable ``NUMBA_NUM_THREADS``; by default one a core).

    Raises
    ------
    ValueError
        If ``n`` is outside that range.
    """
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= n <= most:
        raise ValueError(f"num_threads: n must be from 1 to {most}, got {n}")
    previous = numba.get_num_threads()
    numba.set_num_threads(n)
    try:
        yield
    finally:
        numba.set_num_threads(previous)
