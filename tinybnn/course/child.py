"""The process in which the student's code runs: bounded, without network, without tinybnn.

Only the file of a chapter that extends tinybnn may import it, while that chapter is checked.

It protects against mistakes and temptation. It is not a sandbox: malicious code can do whatever its
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
import signal
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path

from tinybnn.course.catalogue import CHAPTERS
from tinybnn.storage import write_atomic, write_json

try:
    import resource
except ImportError:  # Windows
    resource = None

FILE = 1 << 28  # bytes of a file that the student's code writes
MEMORY = 1 << 30  # bytes of data beyond Python's and NumPy's; Numba and BLAS take a quarter
ALLOWED = "the standard library, NumPy, Numba and your own files"
PACKAGE = "mybnn"
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"}
_ALLOWED = {*sys.stdlib_module_names, "numpy", "numba"}


def main() -> None:
    """Call the function that the parent names and write its result or problem to `result`."""
    order = json.loads(sys.argv.pop())
    folder, scratch = order["folder"], Path(order["scratch"])
    module, _, name = order["target"].partition(":")
    function = getattr(importlib.import_module(module), name)

    own, end = os.getpid(), os._exit
    os.chdir(folder)
    fatal = open(scratch / "fatal", "wb")  # noqa: SIM115 (it is open to the end)
    faulthandler.enable(fatal)
    if hasattr(signal, "SIGUSR1"):  # from the parent, when the time for computing is over
        faulthandler.register(signal.SIGUSR1, fatal, chain=True)
    allow_imports(folder, order["extends"])
    forbid_network()
    forbid_leaving()
    forbid_debugger()
    close(order["closed"], (folder, order["scratch"]))
    limit_memory()
    limit_files()
    faulthandler.dump_traceback_later(order["seconds"], exit=True, file=fatal)
    try:
        value = function(lambda text: write_atomic(scratch / "doing", text.encode()),
                         *order["arguments"])  # fmt: skip
        result = {"value": value}
    except BaseException as error:
        result = {"problem": describe(error, folder)}
    faulthandler.cancel_dump_traceback_later()
    if os.getpid() == own:  # and not a fork by the student's code
        write_json(scratch / "result", result)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    end(0)


# ---------------------------------------------------------------------------- the student's files


class Files:
    """The student's files: those in the folder, without Python environments inside it.

    Parameters
    ----------
    folder : str or PathLike
        The course folder, which holds ``mybnn``.
    """

    folder: str

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.path.realpath(folder)
        installed = (sys.prefix, sys.base_prefix, Path(__file__).parents[1])
        self._installed = [p for p in map(os.path.realpath, installed) if _under(p, self.folder)]

    def __contains__(self, path: str) -> bool:
        return _under(path, self.folder) and not any(_under(path, p) for p in self._installed)

    def line(self, error: BaseException) -> str:
        """Describe the last of the student's lines in an error's traceback; "" if none."""
        if isinstance(error, SyntaxError) and error.filename and error.filename in self:
            return self.place(error.filename, error.lineno or 1, (error.text or "").strip())
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename in self:
                return self.place(frame.filename, frame.lineno, frame.line)
        return ""

    def place(self, path: str, line: int | str | None, code: str | None) -> str:
        """Format a file, a line number and its code."""
        name = os.path.relpath(path, self.folder)
        return f"{name}, line {line}: {code}" if code else f"{name}, line {line}"


def _holds_checks(name, parts):
    """Return whether an import of a module, or of parts of it, asks for the checks."""
    names = [name, *(f"{name}.{part}" for part in parts)]
    return any(f"{one}.".startswith("tinybnn.course.") for one in names)


def _under(path, folder):
    return path == folder or path.startswith(os.path.join(folder, ""))


def describe(error: BaseException, folder: str | os.PathLike[str]) -> str:
    """Describe an error of the student's code, with the line that it comes from."""
    if isinstance(error, MemoryError):
        lift_memory_limit()  # the error still holds the memory
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


def missing_files(folder: str | os.PathLike[str]) -> list[str]:
    """List the course's files that are missing in the student's package."""
    names = [f"{PACKAGE}/{chapter.file}.py" for chapter in CHAPTERS.values()]
    return [name for name in names if not os.path.exists(os.path.join(folder, name))]


def put_back(folder: str | os.PathLike[str]) -> str:
    """Say how to restore files that came with the course."""
    name = os.path.realpath(folder)
    name = f'"{name}"' if " " in name else name
    return f"`tinybnn course start {name}` puts back what is missing"


# ------------------------------------------------------------------------------------------ imports


class _Fresh(SourceFileLoader):
    """Compiles the current file: a ``__pycache__`` may hold a version of a second ago."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder:
    """Finds the student's modules, those of ``mybnn`` first."""

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


def allow_imports(folder: str | os.PathLike[str], extends: str = "") -> None:
    """Restrict the imports of the student's files to what the course allows.

    The rule depends on the importing file: NumPy, Numba and the checks are not restricted.

    Parameters
    ----------
    folder : str or PathLike
        The course folder, which holds ``mybnn``.
    extends : str
        Name of the module of ``mybnn`` that may import tinybnn; "" for none.
    """
    files = Files(folder)
    extending = os.path.join(files.folder, PACKAGE, f"{extends}.py") if extends else None
    finder = _Finder(files)
    sys.meta_path.insert(0, _Finder(files, PACKAGE))
    sys.meta_path.append(finder)
    standard = os.path.realpath(sysconfig.get_path("stdlib"))

    def student(frame):
        """Find the student's importing frame, through the standard library and code in exec."""
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

    def check(name, parts, frame):
        top, why, allowed = name.partition(".")[0], "", ALLOWED
        if top in _ALLOWED or (frame := student(frame)) is None:
            return
        if top != "tinybnn" and finder.find_spec(top) is not None:
            return
        path, what = frame.f_code.co_filename, top
        if os.path.realpath(path) == extending:
            allowed = f"tinybnn, {ALLOWED}"
            if top == "tinybnn":
                if not _holds_checks(name, parts):
                    return
                what, why = "tinybnn.course", ", since it holds the checks"
        elif top == "tinybnn":
            why = ", since you write it yourself"
        place = files.place(path, frame.f_lineno, "")
        raise ImportError(f"{place}: {what} may not be imported here{why}; use {allowed}", name=top)

    plain, by_name = builtins.__import__, importlib.import_module

    def checked_import(name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0:
            check(name, fromlist or (), sys._getframe(1))
        return plain(name, globals, locals, fromlist, level)

    def checked_import_module(name, package=None):
        if not name.startswith("."):
            check(name, (), sys._getframe(1))
        return by_name(name, package)

    builtins.__import__ = checked_import
    importlib.import_module = checked_import_module


# ------------------------------------------------------------------------------------------- bounds


_unlimited = None  # the previous limits


def limit_memory(more: int = MEMORY) -> None:
    """Limit the process's data to `more` bytes above the current size, where the system can.

    Data, not address space, which counts memory that allocators of many threads only reserve.
    """
    global _unlimited
    with contextlib.suppress(AttributeError, OSError, StopIteration, ValueError):  # no Linux
        with open("/proc/self/status", encoding="ascii") as file:
            held = next(int(line.split()[1]) for line in file if line.startswith("VmData")) << 10
        old = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (held + more, old[1]))
        _unlimited = old


def limit_files() -> None:
    """Make it an error to write more than `FILE` bytes into a file, where the system can."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, hard))


def lift_memory_limit() -> None:
    """Restore the limit before `limit_memory`."""
    if _unlimited is not None:
        resource.setrlimit(resource.RLIMIT_DATA, _unlimited)


def forbid_network() -> None:
    """Make sockets and look-ups of names raise an error."""

    def hook(event, arguments):
        if event.startswith("socket.") and event != "socket.gethostname":
            raise OSError("there is no network while the checks run")

    sys.addaudithook(hook)


def close(places: Sequence[str], own: Sequence[str]) -> None:
    """Keep Python code from files in these places, and from programs, which could read them.

    Parameters
    ----------
    places : sequence of str
        Real paths of files and folders.
    own : sequence of str
        Folders that stay open wherever they lie, as do those of Python and of tinybnn.
    """
    if not places:
        return
    open_ = (*own, *map(os.path.realpath, (sys.prefix, sys.base_prefix, Path(__file__).parents[1])))

    def hook(event, arguments):
        if event in _PROGRAMS:
            raise PermissionError("the checks do not let code start programs")
        if event != "open" and event.partition(".")[0] not in ("os", "shutil", "sqlite3"):
            return
        for path in arguments[:2]:  # a pair for renaming and links
            if isinstance(path, (str, bytes)):
                path = os.path.realpath(os.fsdecode(path))
                if any(_under(path, p) for p in places) and not any(_under(path, p) for p in open_):
                    raise PermissionError(f"the checks do not let code use {path}")

    sys.addaudithook(hook)


def forbid_leaving() -> None:
    """Make `os._exit` raise SystemExit, which has a traceback, except in forked processes."""
    own, leave = os.getpid(), os._exit

    def ended(status):
        if os.getpid() != own:
            leave(status)
        raise SystemExit(status)

    os._exit = ended


def forbid_debugger() -> None:
    """Make `breakpoint` and `pdb.set_trace` raise what pdb raises at the end of its input."""

    def ended(*args, **kw):
        raise bdb.BdbQuit

    sys.breakpointhook = pdb.Pdb.set_trace = ended
