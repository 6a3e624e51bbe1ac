"""Compiled kernels on disk.

Use `kernel` instead of ``numba.njit``. Each compiled kernel is stored in its own file, one for each
combination of argument types and CPU. The folder is ``NUMBA_CACHE_DIR`` if that is set; otherwise
the first usable one of ``__pycache__`` beside the kernel's file and the user's cache
(``~/.cache/numba`` on Linux).

Numba's own cache differs in three points:

- It does not notice when a file changes that a kernel imports from. Here the hash of all these
  files has to match.
- It raises if a folder is not writable or a file is damaged, and some damaged files must be deleted
  by hand. Here any failure means that the kernel is compiled, with one `CacheWarning` per process,
  and a damaged file is replaced.
- It loads files that anybody has written. Loading compiled code runs it, so **whoever can write to
  a cache folder can run code as every user of that cache**. Folders and files that other users own
  or can write to are not used, except root's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pickle
import re
import secrets
import stat
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import llvmlite
import numba
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from tinybnn.kernels.machine import compilation
from tinybnn.kernels.machine.pipeline import KernelCompiler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Function = TypeVar("Function", bound=Callable[..., Any])

_MAGIC = b"tinybnn kernel 1"
_DIGEST = hashlib.sha256().digest_size
_NOTE = "all compiled"
kept: set[str] = set()  # paths of the compiled kernels that this process has read or written
_ABANDONED = 3600  # seconds after which a temporary file is that of a killed process


class CacheWarning(RuntimeWarning):
    """The cache on disk cannot be used, so kernels are compiled, which takes time."""


# --------------------------------------------------------------------------------------- decorators


@overload
def kernel(function: Function, *, allocates: bool = True) -> Function: ...
@overload
def kernel(*, allocates: bool = True) -> Callable[[Function], Function]: ...
def kernel(function: Any = None, *, allocates: bool = True) -> Any:
    """Compile a function as ``numba.njit`` does, cached on disk and without the GIL.

    The cache is stale as soon as the kernel's file, or a file of this package that it imports,
    changes. A kernel without a file (such as one typed into a notebook) is not cached.

    Divisions follow NumPy (x / 0 is infinite): Python's exception would be an exit from each loop,
    and such a loop cannot be vectorised.

    Parameters
    ----------
    function : callable, optional
        Without it, the result is a decorator.
    allocates : bool
        False promises that the kernel creates no arrays. Numba then omits reference counting, which
        costs more than a short inner loop.
    """
    if function is None:
        return functools.partial(kernel, allocates=allocates)
    # Kernels are not called from C, so they need no C wrapper, which takes time to compile.
    options = {"no_cfunc_wrapper": True, "pipeline_class": KernelCompiler}
    if not allocates:
        options["_nrt"] = False
    compiled = numba.njit(nogil=True, error_model="numpy", **options)(function)
    if not numba.config.DISABLE_JIT:
        file = Path(function.__code__.co_filename)
        try:
            if file.is_file():
                compiled._cache = _Cache(function, allocates)
        except OSError as error:
            _warn(
                f"each process compiles its kernels again: {file} cannot be read ({_reason(error)})"
            )
    return compiled


# -------------------------------------------------------------------------------------------- stamp

_KERNELS = Path(__file__).parents[1]
_IMPORT = re.compile(r"^from tinybnn\.kernels((?:\.\w+)*) import (\([^)]*\)|.*)", re.MULTILINE)


def _stamp(file):
    """Hash a kernel's file and all kernel files that it imports, directly or indirectly."""
    digests, pending = {}, [file]
    while pending:
        path = pending.pop()
        if path not in digests:
            status = path.stat()  # a file that has changed is read again
            digests[path], imported = _source(path, status.st_mtime_ns, status.st_size)
            pending.extend(imported)
    return hashlib.sha256(b"".join(sorted(digests.values()))).hexdigest()


@functools.lru_cache(maxsize=256)
def _source(file, mtime, size):
    """Return a hash of a file, and the kernel files that it imports."""
    data, files = file.read_bytes(), []
    for dotted, names in _IMPORT.findall(data.decode("utf-8")):
        place = _KERNELS.joinpath(*dotted.split(".")[1:])
        files.append(place.with_suffix(".py"))  # names in a file, or files in a folder
        files.extend(place / f"{name}.py" for name in re.findall(r"\w+", names))
    return hashlib.sha256(data).digest(), [path for path in files if path.is_file()]


# -------------------------------------------------------------------------------------------- cache


class _Cache:
    """The compiled versions of a kernel on disk; Numba's dispatcher calls the public methods.

    A file holds a magic string, the hash of everything the code depends on (is it fresh?), the hash
    of the code (is it complete?), and the pickled code. Nothing is unpickled before both hashes
    match.
    """

    def __init__(self, function, allocates):
        self.function, self.allocates = function, allocates
        self.file = Path(os.path.abspath(function.__code__.co_filename))
        self.stamp = _stamp(self.file)  # of the source as imported, even if it changes later
        name = function.__qualname__.replace("<", "").replace(">", "")
        self.prefix = f"{self.file.stem}.{name}.{sys.implementation.cache_tag}-"

    @property
    def cache_path(self):
        return str(_folders(self.file)[0])

    def load_overload(self, signature, target):
        """Load the kernel compiled for these argument types; None if there is none."""
        if self.allocates:
            rtsys.initialize(target)  # registers memory functions; a refresh imports much more
        name, key = self._name_and_key(signature, target.codegen())
        for folder in _folders(self.file):
            data = _read(folder / name)
            if data is None:
                continue
            try:
                code = _checked(data, key)
                if code is not None:
                    stored, parts = pickle.loads(code)
                    if stored == signature:
                        kept.add(str(folder / name))
                        return CompileResult._rebuild(target, *parts)
            except Exception as error:  # unpickling and LLVM can raise any exception
                _warn(
                    f"the cached kernel {folder / name} cannot be used ({_reason(error)}) and is "
                    f"compiled again. If this warning returns, delete {folder}"
                )
        return None

    def save_overload(self, signature, compiled):
        """Write a compiled kernel to the first usable folder."""
        if compiled.library.has_dynamic_globals:  # addresses that are valid in this process only
            return
        name, key = self._name_and_key(signature, compiled.codegen)
        code = dumps((signature, compiled._reduce()))
        data = _MAGIC + key + hashlib.sha256(code).digest() + code
        problems = []
        for folder in _folders(self.file):
            try:
                _write(folder / name, data)
                kept.add(str(folder / name))
                return
            except OSError as error:
                problems.append(f"{folder} cannot be used ({_reason(error)})")
        _warn("each process compiles its kernels again: " + "; ".join(problems))

    def flush(self):
        """Delete the compiled versions."""
        for folder in _folders(self.file):
            for path in folder.glob(f"{self.prefix}*"):
                _delete(path)

    def _name_and_key(self, signature, codegen):
        """Return the file's name for a signature and this CPU, and the hash of its dependencies."""
        code, cells = self.function.__code__.co_code, self.function.__closure__ or ()
        closure = hashlib.sha256(dumps([cell.cell_contents for cell in cells])).hexdigest()
        version = str(signature), codegen.magic_tuple(), closure if cells else ""
        sources = numba.__version__, llvmlite.__version__, self.stamp, code
        digest = hashlib.sha256(repr(version).encode())
        name = f"{self.prefix}{digest.hexdigest()[:16]}.kernel"
        digest.update(repr(sources).encode())
        return name, digest.digest()


# -------------------------------------------------------------------------------------------- note


def compiles() -> bool:
    """Tell whether kernels are compiled at all (``NUMBA_DISABLE_JIT`` is not set)."""
    return not numba.config.DISABLE_JIT


def note(paths: Iterable[str]) -> bool:
    """Record that these files are all kernels that this version of the package uses on this CPU.

    Returns
    -------
    bool
        Whether the record was written.
    """
    for folder in _folders(Path(__file__)):
        with contextlib.suppress(OSError):
            _write(folder / _NOTE, json.dumps([_version(), sorted(paths)]).encode())
            return True
    return False


def noted() -> list[str] | None:
    """Return the recorded files if all exist and the record is of this version; else None."""
    for folder in _folders(Path(__file__)):
        with contextlib.suppress(ValueError, TypeError):
            version, paths = json.loads(_read(folder / _NOTE) or b"null")
            if version == _version() and paths and all(map(os.path.isfile, paths)):
                return paths
    return None


def _version():
    """Hash all files of this package, the compiler and the CPU."""
    digest = hashlib.sha256(repr((numba.__version__, llvmlite.__version__)).encode())
    digest.update(repr(cpu_target.target_context.codegen().magic_tuple()).encode())
    for path in sorted(_KERNELS.parent.rglob("*.py")):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _folders(file):
    """List folders that may hold the cache of a file's kernels."""
    parent = file.parent
    apart = f"{parent.name}_{hashlib.sha256(os.fsencode(parent)).hexdigest()[:16]}"
    if numba.config.CACHE_DIR:
        return [Path(numba.config.CACHE_DIR) / apart]
    folders = [parent / "__pycache__"]
    home = Path(AppDirs("numba", appauthor=False).user_cache_dir)
    if home.is_absolute():  # it is "~/..." for a user without a home folder
        folders.append(home / apart)
    return folders


def _checked(data, key):
    """Return the code in a file's bytes; None if it is stale, a ValueError if it is damaged."""
    start = len(_MAGIC)
    if data[:start] != _MAGIC or len(data) < start + 2 * _DIGEST:
        raise ValueError("not a complete file of a kernel")
    if data[start : start + _DIGEST] != key:
        return None
    code = data[start + 2 * _DIGEST :]
    if data[start + _DIGEST : start + 2 * _DIGEST] != hashlib.sha256(code).digest():
        raise ValueError("its checksum is wrong")
    return code


def _read(path):
    """Read a file that only trusted users can have written; None if there is no such file."""
    try:
        _refuse_untrusted(os.stat(path.parent))
        # Follow no links, and do not wait for the other end of a named pipe.
        flags = [getattr(os, f"O_{name}", 0) for name in ("NOFOLLOW", "NONBLOCK", "BINARY")]
        with open(os.open(path, os.O_RDONLY | sum(flags)), "rb") as file:
            status = os.fstat(file.fileno())
            _refuse_untrusted(status)
            return file.read() if stat.S_ISREG(status.st_mode) else None
    except OSError:
        return None


def _write(path, data):
    """Write a file that is complete or absent, even if the process is killed."""
    existing = next(folder for folder in path.parents if folder.exists())
    _refuse_foreign(os.stat(existing))  # create nothing in another user's home folder
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _refuse_untrusted(os.stat(path.parent))
    for leftover in path.parent.glob(f"{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _ABANDONED:
                leftover.unlink()
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(temporary, flags, 0o644), "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        _delete(temporary)
        raise


def _delete(path):
    with contextlib.suppress(OSError):
        path.unlink()


def _refuse_foreign(status):
    """Raise a PermissionError if a file or folder belongs to neither this user nor root."""
    # Windows has no user ids; there, users' folders are private.
    if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"it belongs to the user with id {status.st_uid}")


def _refuse_untrusted(status):
    """Raise a PermissionError if others than this user and root can write to a file or folder.

    The group may write if it is the user's own, which is how many systems set up home folders.
    """
    _refuse_foreign(status)
    if hasattr(os, "getegid"):
        is_foreign_group = status.st_gid != os.getegid()
        if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and is_foreign_group):
            raise PermissionError("other users can write to it")


def _reason(error):
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _is_kept(dispatcher):
    return isinstance(getattr(dispatcher, "_cache", None), _Cache)


compilations: compilation.Listener = compilation.watch(_is_kept)


_warned = False


def _warn(problem):
    """Warn about the first problem only; a program has a hundred kernels that all meet it."""
    global _warned
    if not _warned:
        _warned = True
        message = f"{problem}. Set NUMBA_CACHE_DIR to a folder that only you can write to."
        warnings.warn(message, CacheWarning, stacklevel=2)
