"""Show a line on stderr while kernels are compiled.

With an empty cache the first step of a program compiles for some seconds to a minute. On a terminal
a line says so, counts, and is erased when the program continues. Elsewhere nothing is written,
except one plain line if the caller of `announced` has asked for progress.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from numba.core import event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PATIENCE = 1.0  # total seconds of compilation before anything is shown
_INTERVAL = 0.5  # seconds between two updates of the line
_TEXT = "compiling kernels (once on this machine)"

_wanted = contextvars.ContextVar("wanted", default=False)


@contextlib.contextmanager
def announced(progress: bool = True) -> Iterator[None]:
    """In this context, announce compilation once by a plain line, even if stderr is no terminal."""
    token = _wanted.set(bool(progress))
    try:
        yield
    finally:
        _wanted.reset(token)


def watch(is_watched: Callable[[Any], bool]) -> Listener:
    """Announce the compilation of all dispatchers for which ``is_watched(dispatcher)`` is true.

    Returns
    -------
    Listener
        Counts them, as ``done``.
    """
    listener = Listener(is_watched)
    event.register("numba:compile", listener)
    if hasattr(os, "register_at_fork"):  # the thread that writes is not in the child
        os.register_at_fork(after_in_child=listener.reset)
    return listener


class Listener(event.Listener):
    """Called by Numba when a compilation begins and ends, while it holds the compiler's lock.

    Attributes
    ----------
    done : int
        Kernels compiled by this process.
    seconds : float
        Total time of their compilation.
    """

    def __init__(self, is_watched: Callable[[Any], bool]) -> None:
        self._is_watched = is_watched
        self.done: int = 0
        self.seconds: float = 0.0
        self._is_announced = False
        self.reset()

    def reset(self) -> None:
        """Forget the compilations in progress."""
        self._depth, self._writer, self._finished = 0, None, None

    def on_start(self, event: Any) -> None:
        """Start to count the time; Numba calls it."""
        if not self._is_watched(event.data["dispatcher"]):
            return
        self._depth += 1  # a kernel that calls another one compiles it on the way
        if self._depth == 1:
            self._start, self._finished = time.perf_counter(), threading.Event()
            arguments = self._finished, self._start, _wanted.get()
            self._writer = threading.Thread(target=self._write, args=arguments, daemon=True)
            self._writer.start()

    def on_end(self, event: Any) -> None:
        """Stop to count the time; Numba calls it."""
        if not self._depth or not self._is_watched(event.data["dispatcher"]):
            return
        self._depth -= 1
        self.done += 1
        if not self._depth:
            self.seconds += time.perf_counter() - self._start
            self._finished.set()
            # Erase the line before the program writes again, but without waiting for ever if the
            # compiling thread holds the lock of tqdm's bars.
            self._writer.join(1.0)
            self.reset()

    def _write(self, finished, start, is_wanted):
        """Show the line, after an initial silence, until the kernel is finished."""
        if finished.wait(max(0.0, _PATIENCE - self.seconds)):
            return
        with contextlib.suppress(OSError, ValueError):  # stderr is closed
            if sys.stderr is not None and sys.stderr.isatty():
                self._count(finished, start)
            elif sys.stderr is not None and is_wanted and not self._is_announced:
                from tqdm import tqdm  # here, because most processes compile nothing

                self._is_announced = True
                tqdm.write(f"{_TEXT} ...", file=sys.stderr)  # above existing bars

    def _count(self, finished, start):
        from tqdm import tqdm

        class Line(tqdm):
            """A text without a bar, and without tqdm's monitor thread."""

            monitor_interval = 0

        def text():
            seconds = self.seconds + time.perf_counter() - start
            return f"{_TEXT}: {self.done} done, {seconds:.0f} s"

        with Line(bar_format="{desc}", desc=text(), leave=False, file=sys.stderr) as line:
            while not finished.wait(_INTERVAL):
                line.set_description_str(text())
