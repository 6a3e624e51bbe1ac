"""Run the student's code in a child process and describe how it ended."""

from __future__ import annotations

import contextlib
import json
import linecache
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinybnn.course.child import Files
from tinybnn.storage import read_json

_PRINTED = 4000  # characters kept of the output of the student's code
# The products of the course are small: beside other programs, threads waiting for each other made a
# milestone of one second take half a minute.
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_GRACE = 20.0  # seconds for the process to start, and to end on its own after its time limit
_WAITING = 5  # limit of time by the clock, in multiples of that of computing
_POLL = 0.2  # seconds
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[-1])['path']; "
    "from tinybnn.course.child import main; main()"
)


@dataclass(frozen=True)
class Ended:
    """The result of a process.

    Parameters
    ----------
    value : object
        The function's result; None if there is a problem.
    problem : str
        The reason why there is no value, with the student's line; else empty.
    slow : bool
        Whether the time limit was exceeded.
    printed : str
        Output of the student's code, truncated if long.
    """

    value: Any = None
    problem: str = ""
    slow: bool = False
    printed: str = ""


def run_in_child(
    target: str,
    arguments: Sequence[Any],
    folder: str | os.PathLike[str],
    seconds: float,
    say: Callable[[str], Any] | None = None,
    extends: str = "",
    closed: Sequence[str] = (),
) -> Ended:
    """Call a function in a child process that bounds the student's code.

    Parameters
    ----------
    target : str
        ``module:function`` of tinybnn. Its first argument is a function that records the current
        action (a text), followed by `arguments`; its result must be JSON serializable.
    arguments : list
        JSON serializable arguments.
    folder : str or PathLike
        The course folder, which holds ``mybnn``.
    seconds : float
        Time limit of the process: of computing, where the system tells it, so that a busy computer
        does not matter. By the clock it may then take five times as long.
    say : callable, optional
        Called with each printed line at once, up to the number of characters that is kept.
    extends : str
        Name of the module of ``mybnn`` that may import tinybnn; "" for none.
    closed : sequence of str
        Real paths of files and folders that the student's code may not open, nor what lies in them.

    Returns
    -------
    Ended
    """
    folder = os.path.realpath(folder)
    with tempfile.TemporaryDirectory(prefix="tinybnn-") as scratch:
        limit = seconds * (1 if _computed(os.getpid()) is None else _WAITING)
        order = {
            "path": [p for p in map(os.path.abspath, sys.path) if p != folder],
            "target": target, "arguments": arguments, "folder": folder,
            "seconds": limit, "scratch": os.path.realpath(scratch), "extends": extends,
            "closed": list(closed),
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-B", "-c", _START, json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=scratch,
            env={
                **os.environ,
                "PYTHONHASHSEED": "0",  # sets of texts in the same order each time
                "PYTHONIOENCODING": "utf-8:backslashreplace",
                "HYPOTHESIS_STORAGE_DIRECTORY": scratch,
                **dict.fromkeys(_BLAS_THREADS, "1"),
            },
            start_new_session=True,
        )
        output, late = _Output(process.stdout, say), True
        try:
            late = _is_late(process, Path(scratch, "fatal"), seconds, limit)
        finally:
            _kill(process)
            output.end()
        left = _Left(Path(scratch), Files(folder), process.returncode)
        if (value := left.result()) is not None and not late:
            return Ended(value.get("value"), value.get("problem", ""), False, output.text())
        late = late or left.fatal.startswith("Timeout")
        return Ended(None, left.reason((seconds, limit) if late else None), late, output.text())


def _is_late(process, begun, seconds, limit):
    """Wait for a process to end; return whether it is over a time limit, having dumped its lines.

    The file `begun` appears when the student's code begins.
    """
    end, computed = time.monotonic() + limit + _GRACE, None
    while time.monotonic() < end:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)
            return False
        if computed is None:
            if begun.exists():
                start, computed = time.monotonic(), _computed(process.pid)
        elif time.monotonic() - start > seconds and _computed(process.pid) - computed > seconds:
            process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(2.0, _GRACE))
            return True
    return True


def _computed(pid):
    """Seconds of processor time that a process has taken so far; None where nothing tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


class _Output:
    """Reads the output of a process to its end; keeps the beginning."""

    def __init__(self, pipe, say):
        self._kept, self._more, self._pipe, self._say = [], 0, pipe, say
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        room = _PRINTED
        with self._pipe:
            while line := self._pipe.readline(_PRINTED):
                text = line.decode("utf-8", "replace")
                if len(text) > room:
                    self._more += len(text) - room
                    text = text[:room]
                room -= len(text)
                if text:
                    self._kept.append(text)
                    if self._say is not None:
                        self._say(text.rstrip("\n"))

    def end(self):
        self._thread.join(2.0)  # a process detached by the student's code may hold the pipe

    def text(self):
        more = f"\n... and {self._more:,} more characters" if self._more else ""
        return "".join(self._kept).rstrip() + more


def _kill(process):
    """Kill the process and all processes in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


class _Left:
    """The files that a process has left; only a result, written at its end, counts."""

    def __init__(self, scratch, files, code):
        self._scratch, self._files, self._code = scratch, files, code
        self.fatal = self._text("fatal")

    def _text(self, name):
        path = self._scratch / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def result(self):
        path = self._scratch / "result"
        return read_json(path) if path.exists() else None

    def reason(self, late):
        """Say why there is no result; `late` holds the time limits if one was exceeded."""
        if late is not None:
            seconds, limit = late
            waiting = f" of computing or {limit:g} s with waiting" if limit > seconds else ""
            text = (
                f"the time was up after {seconds:g} s{waiting}: a loop that does not end, or too "
                "slow a way"
            )
        elif self._code < 0:
            name = signal.Signals(-self._code).name
            text = f"the process crashed or was killed ({name})"
        else:
            text = f"the process ended (exit code {self._code}) before the checks did"
        if line := self._line():
            text += f"\n  in      {line}"
        elif late is not None:
            text += "\n  in      no line of Python: in code that Numba compiled, or in the check"
        if doing := self._text("doing"):
            text += f"\n  while   {doing}"
        return text

    def _line(self):
        """Find the innermost of the student's lines in a dump of `faulthandler`."""
        folder = self._files.folder
        written = folder.encode("ascii", "backslashreplace").decode()  # as faulthandler writes it
        for path, line in re.findall(r'File "(.*)", line (\d+)', self.fatal):
            path = folder + path[len(written) :] if path.startswith(written) else path
            if path in self._files:
                return self._files.place(path, line, linecache.getline(path, int(line)).strip())
        return ""
