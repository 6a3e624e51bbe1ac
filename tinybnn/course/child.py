"""The process in which the student's code runs: bounded, without network, without tinybnn.

It protects against mistakes and temptation. It is no sandbox: code that means harm can do what its
user can do.
"""

from __future__ import annotations

import bdb
import builtins
import contextlib
import faulthandler
import importlib
import json
import os
import pdb
import socket
import sys
import sysconfig
import traceback
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path

from tinybnn.course.catalogue import CHAPTERS
from tinybnn.storage import write_atomic, write_json

try:
    import resource
except ImportError:  # Windows
    resource = None

MEMORY = 1 << 30  # bytes of data beyond what Python and NumPy hold; Numba and BLAS take a quarter
ALLOWED = "the standard library, NumPy, Numba and your own files"
PACKAGE = "mybnn"
_ALLOWED = {*sys.stdlib_module_names, "numpy", "numba"}


def main():
    """Call the function that the parent names; whatever comes of it goes into the file `result`."""
    order = json.loads(sys.argv.pop())
    folder, scratch = order["folder"], Path(order["scratch"])
    module, _, name = order["target"].partition(":")
    function = getattr(importlib.import_module(module), name)

    own, end = os.getpid(), os._exit
    os.chdir(folder)
    fatal = open(scratch / "fatal", "wb")  # noqa: SIM115 (it is open to the end)
    faulthandler.enable(fatal)
    allow_imports(folder)
    forbid_network()
    forbid_leaving()
    forbid_debugger()
    close(order["closed"], (folder, order["scratch"]))
    limit_memory()
    faulthandler.dump_traceback_later(order["seconds"], exit=True, file=fatal)
    try:
        value = function(lambda text: write_atomic(scratch / "doing", text.encode()),
                         *order["arguments"])  # fmt: skip
        result = {"value": value}
    except BaseException as error:
        result = {"problem": describe(error, folder)}
    faulthandler.cancel_dump_traceback_later()
    if os.getpid() == own:  # and not a copy that the student's code has made
        write_json(scratch / "result", result)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    end(0)


# ----------------------------------------------------------------------------- where the student is


class Files:
    """Which files are the student's: those in the folder, but for environments that lie in it.

    Parameters
    ----------
    folder : str or PathLike
        The course folder, which holds ``mybnn``.
    """

    def __init__(self, folder):
        self.folder = os.path.realpath(folder)
        installed = (sys.prefix, sys.base_prefix, Path(__file__).parents[1])
        self._installed = [p for p in map(os.path.realpath, installed) if _under(p, self.folder)]

    def __contains__(self, path):
        return _under(path, self.folder) and not any(_under(path, p) for p in self._installed)

    def line(self, error):
        """The last of the student's lines that an error passed through, as text; "" if none."""
        if isinstance(error, SyntaxError) and error.filename and error.filename in self:
            return self.place(error.filename, error.lineno or 1, (error.text or "").strip())
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename in self:
                return self.place(frame.filename, frame.lineno, frame.line)
        return ""

    def place(self, path, line, code):
        name = os.path.relpath(path, self.folder)
        return f"{name}, line {line}: {code}" if code else f"{name}, line {line}"


def _under(path, folder):
    return path == folder or path.startswith(os.path.join(folder, ""))


def describe(error, folder):
    """An error of the student's code in words, with the line where it comes from."""
    if isinstance(error, MemoryError):
        lift_memory_limit()  # the error still holds what has used it up
    line = Files(folder).line(error)
    if isinstance(error, SystemExit):
        text = "the code ends the process (sys.exit, exit or os._exit); return a value instead"
    elif isinstance(error, SyntaxError):
        text = f"{type(error).__name__}: {error.msg}"
    elif isinstance(error, bdb.BdbQuit):
        text = "a debugger cannot be used here, since nobody answers it; print instead"
    elif isinstance(error, EOFError) and "input(" in line:
        text = "the code asks for input; the checks pass arguments, and nobody answers"
    elif isinstance(error, MemoryError):
        text = f"the memory was used up: {str(error) or 'a list or an array grows without end'}"
    elif isinstance(error, NotImplementedError):
        text = "a function is called that is not written yet"
    else:
        text = f"{type(error).__name__}: {error}"
    text += f"\n  in      {line}" if line else ""
    ours = isinstance(error, ImportError) and (error.name or "").split(".")[0] == PACKAGE
    if ours and (names := missing_files(folder)):
        text += f"\n  note    missing: {', '.join(names)}; {put_back(folder)}"
    return text


def missing_files(folder):
    """Which of the course's files are not in the student's package."""
    names = [f"{PACKAGE}/{chapter.file}.py" for chapter in CHAPTERS.values()]
    return [name for name in names if not os.path.exists(os.path.join(folder, name))]


def put_back(folder):
    """How to get files back that came with the course."""
    name = os.path.realpath(folder)
    name = f'"{name}"' if " " in name else name
    return f"`tinybnn course start {name}` puts back what is missing"


# ------------------------------------------------------------------------------------------ imports


class _Fresh(SourceFileLoader):
    """Compiles the file as it is now: a ``__pycache__`` can hold what it was a second ago."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder:
    """Finds the student's modules; those of ``mybnn`` before all others."""

    def __init__(self, files, only=None):
        self.files, self.only = files, only

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if self.only not in (None, top):
            return None
        for place in [self.files.folder] if path is None else path:
            if place in self.files:
                spec = FileFinder(place, (_Fresh, [".py"])).find_spec(name)
                if spec is not None:
                    return spec
        return None


def allow_imports(folder):
    """From now on the student's files import only what the course allows.

    The rule looks at who imports: NumPy, Numba and the checks import what they need.
    """
    files = Files(folder)
    finder = _Finder(files)
    sys.meta_path.insert(0, _Finder(files, PACKAGE))
    sys.meta_path.append(finder)
    standard = os.path.realpath(sysconfig.get_path("stdlib"))

    def student(frame):
        """The student's frame that imports; through the standard library and texts, as of exec."""
        while frame is not None:
            path = frame.f_code.co_filename
            if path in files:
                return frame
            passes = not os.path.isabs(path) or (
                _under(os.path.realpath(path), standard) and "-packages" not in path
            )
            if not passes:
                return None
            frame = frame.f_back
        return None

    def check(name, frame):
        top = name.partition(".")[0]
        if top in _ALLOWED or (frame := student(frame)) is None:
            return
        if top != "tinybnn" and finder.find_spec(top) is not None:
            return
        why = ", since you write it yourself" if top == "tinybnn" else ""
        place = files.place(frame.f_code.co_filename, frame.f_lineno, "")
        raise ImportError(f"{place}: {top} may not be imported here{why}; use {ALLOWED}", name=top)

    plain, by_name = builtins.__import__, importlib.import_module

    def checked_import(name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0:
            check(name, sys._getframe(1))
        return plain(name, globals, locals, fromlist, level)

    def checked_import_module(name, package=None):
        if not name.startswith("."):
            check(name, sys._getframe(1))
        return by_name(name, package)

    builtins.__import__ = checked_import
    importlib.import_module = checked_import_module


# ------------------------------------------------------------------------------------------- bounds


_unlimited = None  # the limits before


def limit_memory(more=MEMORY):
    """Limit the process's data, where the system can.

    Data, not address space: the latter counts what allocators of many threads only reserve.
    """
    global _unlimited
    with contextlib.suppress(AttributeError, OSError, StopIteration, ValueError):  # no Linux
        with open("/proc/self/status", encoding="ascii") as file:
            held = next(int(line.split()[1]) for line in file if line.startswith("VmData")) << 10
        old = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (held + more, old[1]))
        _unlimited = old


def lift_memory_limit():
    if _unlimited is not None:
        resource.setrlimit(resource.RLIMIT_DATA, _unlimited)


def forbid_network():
    """Sockets raise an error from now on."""

    class NoSocket(socket.socket):
        def __init__(self, *args, **kw):
            raise OSError("there is no network while the checks run")

    socket.socket = NoSocket


def close(places, own):
    """From now on files in these places cannot be opened, changed or listed by Python code.

    Parameters
    ----------
    places : sequence of str
        Real paths of files and folders.
    own : sequence of str
        Folders that stay open wherever they lie; so do Python's and tinybnn's own.
    """
    if not places:
        return
    open_ = (*own, *map(os.path.realpath, (sys.prefix, sys.base_prefix, Path(__file__).parents[1])))

    def hook(event, arguments):
        if event != "open" and event.partition(".")[0] not in ("os", "shutil", "sqlite3"):
            return
        for path in arguments[:2]:  # a pair for renaming and links
            if isinstance(path, (str, bytes)):
                path = os.path.realpath(os.fsdecode(path))
                if any(_under(path, p) for p in places) and not any(_under(path, p) for p in open_):
                    raise PermissionError(f"the checks do not let code use {path}")

    sys.addaudithook(hook)


def forbid_leaving():
    """`os._exit` raises SystemExit, which tells the line; in a forked process it stays as it is."""
    own, leave = os.getpid(), os._exit

    def ended(status):
        if os.getpid() != own:
            leave(status)
        raise SystemExit(status)

    os._exit = ended


def forbid_debugger():
    """`breakpoint` and `pdb.set_trace` raise at once what pdb raises when its input ends."""

    def ended(*args, **kw):
        raise bdb.BdbQuit

    sys.breakpointhook = pdb.Pdb.set_trace = ended
