"""Start the process in which the student's code runs, and say in words how it ended."""

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
from dataclasses import dataclass
from pathlib import Path

from tinybnn.course.child import Files
from tinybnn.storage import read_json

_PRINTED = 4000  # characters of what the student's code prints that are kept
# The products of the course are small: beside other programs, threads that wait for each other made
# a milestone of one second last half a minute.
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_GRACE = 20.0  # seconds that the process has to begin, and to end by itself when its time is up
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[-1])['path']; "
    "from tinybnn.course.child import main; main()"
)


@dataclass(frozen=True)
class Ended:
    """How the process ended.

    Parameters
    ----------
    value : object
        What the function returned; None if there is a problem.
    problem : str
        Why there is no value, with the student's line; empty if there is one.
    slow : bool
        Whether the problem is that the time was up.
    printed : str
        What the student's code printed, cut where it is long.
    """

    value: object = None
    problem: str = ""
    slow: bool = False
    printed: str = ""


def run_in_child(target, arguments, folder, seconds, say=None, closed=()):
    """Call a function in a process of its own, in which the student's code is bounded.

    Parameters
    ----------
    target : str
        ``module:function`` of tinybnn. It is called with a function that notes what is being done
        (a text), then with the arguments; it returns what JSON can hold.
    arguments : list
        What JSON can hold.
    folder : str or PathLike
        The course folder, in which ``mybnn`` is.
    seconds : float
        After this time the process ends.
    say : callable, optional
        Gets each printed line at once, of the first ones.
    closed : sequence of str
        Real paths of files and folders that may not be opened, nor what lies in them.

    Returns
    -------
    Ended
    """
    folder = os.path.realpath(folder)
    with tempfile.TemporaryDirectory(prefix="tinybnn-") as scratch:
        order = {
            "path": [p for p in map(os.path.abspath, sys.path) if p != folder],
            "target": target, "arguments": arguments, "folder": folder,
            "seconds": seconds, "scratch": os.path.realpath(scratch), "closed": list(closed),
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
        output, late = _Output(process.stdout, say), False
        try:
            process.wait(seconds + _GRACE)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _kill(process)
            output.end()
        left = _Left(Path(scratch), Files(folder), process.returncode)
        if (value := left.result()) is not None and not late:
            return Ended(value.get("value"), value.get("problem", ""), False, output.text())
        late = late or left.fatal.startswith("Timeout")
        return Ended(None, left.reason(seconds if late else None), late, output.text())


class _Output:
    """Reads what a process prints, to its end; keeps the beginning."""

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
        self._thread.join(2.0)  # a process that the student's code has set free may hold the pipe

    def text(self):
        more = f"\n... and {self._more:,} more characters" if self._more else ""
        return "".join(self._kept).rstrip() + more


def _kill(process):
    """End the process and whatever it has started in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


class _Left:
    """What a process has left behind; only a result, written at its end, counts."""

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
        """Why there is no result; `late` is the time limit in seconds if it was over."""
        if late is not None:
            text = f"the time was up after {late:g} s: a loop that does not end, or too slow a way"
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
        """The innermost of the student's lines in a dump of `faulthandler`."""
        folder = self._files.folder
        written = folder.encode("ascii", "backslashreplace").decode()  # as faulthandler does it
        for path, line in re.findall(r'File "(.*)", line (\d+)', self.fatal):
            path = folder + path[len(written) :] if path.startswith(written) else path
            if path in self._files:
                return self._files.place(path, line, linecache.getline(path, int(line)).strip())
        return ""
