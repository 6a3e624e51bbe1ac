"""A line on stderr while kernels are compiled.

With an empty cache the first step of a program compiles for some seconds to a minute. On a terminal
a line says so, counts, and is erased when the program goes on. Elsewhere nothing is written, except
one plain line where the caller of `announced` has asked for progress.
"""

import contextlib
import contextvars
import os
import sys
import threading
import time

from numba.core import event

_PATIENCE = 1.0  # seconds of compilation in all that pass in silence
_INTERVAL = 0.5  # seconds between two updates of the line
_TEXT = "compiling kernels (once on this machine)"

_wanted = contextvars.ContextVar("wanted", default=False)


@contextlib.contextmanager
def announced(progress=True):
    """Inside, compilation is announced once, by a plain line, also where stderr is no terminal."""
    token = _wanted.set(bool(progress))
    try:
        yield
    finally:
        _wanted.reset(token)


def watch(is_watched):
    """Announce the compilation of all dispatchers for which ``is_watched(dispatcher)`` holds.

    The result counts them, as ``done``.
    """
    listener = _Listener(is_watched)
    event.register("numba:compile", listener)
    if hasattr(os, "register_at_fork"):  # the thread that writes is not in the child
        os.register_at_fork(after_in_child=listener.reset)
    return listener


class _Listener(event.Listener):
    """Told by Numba when a compilation begins and ends, while it holds the compiler's lock.

    Attributes
    ----------
    done : int
        Kernels compiled by this process.
    seconds : float
        The time that they took.
    """

    def __init__(self, is_watched):
        self.is_watched = is_watched
        self.done, self.seconds, self.is_announced = 0, 0.0, False
        self.reset()

    def reset(self):
        """Forget the compilations under way."""
        self.depth, self.writer, self.finished = 0, None, None

    def on_start(self, event):
        if not self.is_watched(event.data["dispatcher"]):
            return
        self.depth += 1  # a kernel that calls another one compiles it on the way
        if self.depth == 1:
            self.start, self.finished = time.perf_counter(), threading.Event()
            arguments = self.finished, self.start, _wanted.get()
            self.writer = threading.Thread(target=self._write, args=arguments, daemon=True)
            self.writer.start()

    def on_end(self, event):
        if not self.depth or not self.is_watched(event.data["dispatcher"]):
            return
        self.depth -= 1
        self.done += 1
        if not self.depth:
            self.seconds += time.perf_counter() - self.start
            self.finished.set()
            # The line is gone before the program writes again; but whoever compiles while it holds
            # the lock of tqdm's bars does not wait for ever.
            self.writer.join(1.0)
            self.reset()

    def _write(self, finished, start, is_wanted):
        """Show the line from the end of the silence until the kernel is finished."""
        if finished.wait(max(0.0, _PATIENCE - self.seconds)):
            return
        with contextlib.suppress(OSError, ValueError):  # stderr is closed
            if sys.stderr is not None and sys.stderr.isatty():
                self._count(finished, start)
            elif sys.stderr is not None and is_wanted and not self.is_announced:
                from tqdm import tqdm  # here, since most processes compile nothing

                self.is_announced = True
                tqdm.write(f"{_TEXT} ...", file=sys.stderr)  # above the bars there are

    def _count(self, finished, start):
        from tqdm import tqdm

        class Line(tqdm):
            """A bar without a bar, and without a thread that watches it."""

            monitor_interval = 0

        def text():
            seconds = self.seconds + time.perf_counter() - start
            return f"{_TEXT}: {self.done} done, {seconds:.0f} s"

        with Line(bar_format="{desc}", desc=text(), leave=False, file=sys.stderr) as line:
            while not finished.wait(_INTERVAL):
                line.set_description_str(text())
