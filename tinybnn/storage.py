"""Files of arrays: the one place that writes and reads them.

A file is a zip whose members are ``.npy`` arrays, so ``numpy.load`` opens it too. The first member,
``__header__.npy``, holds UTF-8 JSON as an array of bytes::

    {"format": "tinybnn", "format_version": 1, "kind": "checkpoint", "version": 1,
     "metadata": {...}, "sha256": "..."}

The SHA-256 covers the rest of the header and the name, dtype, shape and bytes of every array.
Arrays are little-endian, in C order, uncompressed and sorted by name; equal content always gives
equal bytes.

Since content has only one valid form, a file is read from its first byte to its last: each
member's frame is rebuilt from the few numbers in it that vary, and compared. Any difference is
refused. Nothing is unpickled or evaluated, and an array is allocated only once the file is known to
hold as many bytes as it needs.

A file holds at most 65,534 arrays and 4 GiB (the limits of a zip without its 64-bit extension).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tinybnn.typing import Array, Shape

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "Member", "StorageError", "check_name", "dumps", "expecting", "layout", "load", "loads",
    "open_regular", "open_to_append", "printable", "read_header", "read_json", "save", "try_lock",
    "write_atomic", "write_json",
]  # fmt: skip
__dir__: Callable[[], list[str]] = __all__.copy  # dir() shows public names only

_FORMAT = "tinybnn"
_FORMAT_VERSION = 1
_HEADER = "__header__"
_MAX_HEADER = 1 << 24  # bytes; larger data belongs in arrays
_MAX_DEPTH = 64  # of nested metadata
_MAX_NAME = 250  # bytes; with ".npy" appended, still a file name on common systems
_MAX_MEMBERS = 0xFFFF
_MAX_SIZE = 0xFFFFFFFF
_MAX_MESSAGE = 500  # characters of an error message, which may quote the file's content
_MAX_FRAME = 4096  # bytes; more than the file adds to an array

_DTYPES = {
    dtype.str: dtype
    for letter, sizes in {"b": "1", "i": "1248", "u": "1248", "f": "248"}.items()
    for dtype in [np.dtype(f"<{letter}{size}") for size in sizes]
}


class StorageError(ValueError):
    """A file that cannot be trusted, or content that a file cannot hold."""


# ---------------------------------------------------------------------------------------- writing


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Array],
    *,
    kind: str,
    version: int,
    metadata: Mapping[str, Any] | None = None,
) -> int:
    """Write named arrays to a file, atomically.

    Parameters
    ----------
    path : str or PathLike
        Used as it is; no suffix is added.
    arrays : Mapping of str to numpy.ndarray
        bool, integer (8 to 64 bits) or float (16 to 64 bits) arrays of any shape.
    kind : str
        The kind of file, e.g. "packed-model". `load` asks for it.
    version : int
        Version of this kind of file, from 1.
    metadata : Mapping, optional
        JSON values under string keys. Tuples come back as lists.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    StorageError
        If an array, a name or the metadata cannot be stored.
    OSError
        If the file cannot be written; an old file at `path` stays as it was.
    """
    chunks = _encode(arrays, kind, version, metadata)
    return write_atomic(path, lambda file: file.writelines(chunks))


def dumps(
    arrays: Mapping[str, Array],
    *,
    kind: str,
    version: int,
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the bytes that `save` would write. Same parameters and errors."""
    return b"".join(_encode(arrays, kind, version, metadata))


def write_atomic(
    path: str | os.PathLike[str], content: bytes | memoryview | Callable[[BinaryIO], object]
) -> int:
    """Write a file such that `path` holds either the old content or all of the new one.

    The content goes to a temporary file in the same folder, which is flushed to the disk and then
    renamed. If `path` is a symbolic link, its target is replaced. A writer that is killed leaves
    its temporary file; the next write into the folder removes it.

    Parameters
    ----------
    path : str or PathLike
    content : bytes-like, or callable
        A callable gets the binary file to write to.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    OSError
        The subclass that fits, naming `path`. On this and any other exception, also one raised by
        the callable, the temporary file is removed and an old file stays untouched.
    """
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    try:
        mode = _mode_of_old_file(path)
        _remove_leftovers(folder)
        with _temporary_file(folder) as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
            if mode is not None:
                os.chmod(file.name, mode)
            if _WINDOWS:
                file.close()  # Windows renames closed files only
            os.replace(file.name, path)  # elsewhere the lock holds until the file is renamed
    except OSError as error:
        reason = f"cannot write the file ({error.strerror or error})"
        raise OSError(error.errno or errno.EIO, reason, path) from error
    _sync_folder(folder)
    return size


_WINDOWS = os.name == "nt"
_TEMPORARY = re.compile(rf"\.{_FORMAT}-[0-9a-f]{{16}}\.tmp")


@contextlib.contextmanager
def _temporary_file(folder: str) -> Iterator[Any]:
    """Open a new file, locked as long as it is open; an exception removes it."""
    while True:
        name = f".{_FORMAT}-{secrets.token_hex(8)}.tmp"
        file = open(os.path.join(folder, name), "xb")  # noqa: SIM115 (it is closed below)
        try:
            with file:
                # Until it is locked, another writer may take the file for a leftover.
                if try_lock(file) is not False:
                    yield file
                    return
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise


def _remove_leftovers(folder: str) -> None:
    """Remove temporary files of killed writers. A living writer holds a lock on its own."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # another user's, or already removed
                    _remove_if_abandoned(entry.path)


def _remove_if_abandoned(path):
    if _WINDOWS:  # no locks; but open files cannot be removed, and are renamed soon after closing
        if time.time() - os.path.getmtime(path) > 3600:
            os.unlink(path)
        return
    with open(path, "r+b") as file:
        if try_lock(file):
            os.unlink(path)


def try_lock(file: Any) -> bool | None:
    """Lock an open file without waiting.

    The operating system releases the lock when the file is closed or the process ends.

    Parameters
    ----------
    file : file object
        Opened for writing, by its path.

    Returns
    -------
    bool or None
        False if another holder has the lock, or the path no longer leads to this file; None if
        the operating system or the file system has no locks.
    """
    locked = None
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    try:
        is_same = os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False
    return locked if is_same else False


def _mode_of_old_file(path):
    """Permission bits of the file at `path`, None if it does not exist; refuses non-files."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):  # renaming a file over /dev/null would replace the device
        raise OSError(errno.EINVAL, "not a regular file")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_IMODE(mode)


def _sync_folder(folder):
    """Make the renaming durable, on systems that can; the file is whole either way."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _encode(arrays: Any, kind: Any, version: Any, metadata: Any) -> list[Any]:
    """The file as a list of bytes-like chunks, with arrays uncopied where possible."""
    if not isinstance(kind, str) or not kind:
        raise StorageError(f"kind must be a string that is not empty, got {kind!r}")
    if not _is_version(version):
        raise StorageError(f"version must be an integer >= 1, got {version!r}")
    if not isinstance(arrays, Mapping):
        raise StorageError(f"arrays must map names to arrays, got {type(arrays).__name__}")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, Mapping):
        raise StorageError(f"metadata must be a mapping, got {type(metadata).__name__}")
    metadata = dict(metadata)
    _check_json(metadata, "metadata")
    for name in arrays:
        _check_name(name)
    stored = {name: _as_stored(name, arrays[name]) for name in sorted(arrays)}

    header = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "kind": kind,
        "version": int(version),
        "metadata": metadata,
    }
    text = _json({**header, "sha256": _digest(header, stored)})
    if len(text) > _MAX_HEADER:
        raise StorageError(
            f"metadata takes {len(text):,} bytes as JSON, at most {_MAX_HEADER:,} fit: "
            "store large data as arrays"
        )

    size = len(text) + sum(array.nbytes for array in stored.values())
    size += (len(stored) + 1) * _MAX_FRAME
    if len(stored) >= _MAX_MEMBERS or size > _MAX_SIZE:
        raise StorageError(
            f"{len(stored):,} arrays with {size:,} bytes are too many: "
            "a file holds at most 65,534 arrays and 4 GiB"
        )

    chunks, entries, offset = [], [], 0
    for name, array in {_HEADER: np.frombuffer(text, np.uint8), **stored}.items():
        npy, body = _npy_header(array.dtype, array.shape), _bytes_of(array)
        crc = zlib.crc32(body, zlib.crc32(npy))
        entry = _Entry(f"{name}.npy".encode(), crc, len(npy) + len(body), offset)
        frame = _local_header(entry)
        chunks += [frame, npy, body]
        entries.append(entry)
        offset += len(frame) + entry.size
    chunks.append(_directory(entries))
    return chunks


def _as_stored(name, array):
    """The array in little-endian C order; refuses types that a file cannot hold."""
    if not isinstance(array, (np.ndarray, np.generic)) or isinstance(array, np.ma.MaskedArray):
        raise StorageError(f"array {name!r}: expected a NumPy array, got {type(array).__name__}")
    dtype = array.dtype.newbyteorder("<")
    if dtype.str not in _DTYPES:
        raise StorageError(
            f"array {name!r}: dtype {array.dtype} cannot be stored; "
            "bool, integers and floats of at most 64 bits can"
        )
    return np.asarray(array).astype(dtype, order="C", copy=False)


def _check_name(name):
    problem = None
    if not isinstance(name, str):
        problem = "it must be a string"
    elif not name.isprintable() or "/" in name or "\\" in name:
        problem = "it must be printable, without slashes"
    elif name == _HEADER or name.endswith(".npy"):
        problem = "it is reserved"
    elif not 1 <= len(name.encode()) <= _MAX_NAME:
        problem = f"it must have 1 to {_MAX_NAME} bytes"
    if problem:
        raise StorageError(f"array name {name!r} cannot be used: {problem}")


def _check_json(value, where, depth=0):
    """Refuse metadata that JSON would not preserve."""
    if depth > _MAX_DEPTH:
        raise StorageError(f"metadata is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise StorageError(f"{where} has the key {key!r}; JSON keeps string keys only")
            _check_json(item, f"{where}[{key!r}]", depth + 1)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_json(item, f"{where}[{i}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise StorageError(f"{where} is {value}, which JSON cannot hold")
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise StorageError(f"{where} is of type {type(value).__name__}, which JSON cannot hold")


def _json(value):
    """JSON in its one canonical form, as bytes."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:  # an integer of thousands of digits
        raise StorageError(f"metadata cannot be written as JSON: {error}") from None
    return text.encode("ascii")


# ---------------------------------------------------------------------------------------- reading


def load(
    path: str | os.PathLike[str], *, kind: str, version: int
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a file that `save` wrote.

    Parameters
    ----------
    path : str or PathLike
    kind : str
        The kind of file that the caller understands.
    version : int
        The newest version of that kind that the caller understands. Older ones are read too;
        `read_header` returns a file's version.

    Returns
    -------
    arrays : dict of str to numpy.ndarray
        Sorted by name, with the dtypes and shapes that were saved, in native byte order, writable.
    metadata : dict

    Raises
    ------
    StorageError
        If the file is foreign, damaged, of another kind or of a newer version.
    OSError
        If the file cannot be opened or read.
    """
    with _open(path) as (file, size):
        return _decode(file, size, kind, version)


def loads(
    data: bytes | bytearray | memoryview, *, kind: str, version: int
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read the bytes that `dumps` returned. Same result and errors as for `load`."""
    return _decode(io.BytesIO(data), len(memoryview(data).cast("B")), kind, version)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the kind, version and metadata of a file, but not its arrays.

    Returns
    -------
    dict
        Keys ``kind``, ``version`` and ``metadata``. Only the header's checksum is verified.

    Raises
    ------
    StorageError, OSError
        As `load` does.
    """
    with _open(path) as (file, size):
        header, _ = _read_header(file, size)
    return {key: header[key] for key in ("kind", "version", "metadata")}


class Member(NamedTuple):
    """Place of an array in a file: its frame begins at `start`, its bytes are `body` to `stop`."""

    name: str  # "__header__" for the file's header
    dtype: np.dtype[Any]
    shape: Shape
    start: int
    body: int
    stop: int


def layout(path: str | os.PathLike[str]) -> list[Member]:
    """List the members of a file and their positions, without reading the arrays.

    Returns
    -------
    list of Member
        In the order of the file, without gaps. After the last one comes the zip's directory.

    Raises
    ------
    StorageError, OSError
        As `load` does.
    """
    with _open(path) as (file, size):
        _read_header(file, size)
        file.seek(0)
        members = []
        while (frame := _read_frame(file, size)) is not None:
            entry, dtype, shape = frame
            body = file.tell()
            stop = body + math.prod(shape) * dtype.itemsize
            name = entry.name.decode(errors="replace").removesuffix(".npy")
            members.append(Member(name, dtype, shape, entry.offset, body, stop))
            file.seek(stop)
    return members


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[tuple[Any, int]]:
    """Open a file and tell its size; prefix a StorageError raised inside with the path."""
    try:
        opened = open_regular(path)
    except IsADirectoryError:
        raise StorageError(f"{os.fspath(path)}: not a regular file") from None
    with opened as file:
        try:
            yield file, os.fstat(file.fileno()).st_size
        except StorageError as error:
            raise StorageError(f"{os.fspath(path)}: {error}") from None


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading bytes; refuse pipes, on which reading would wait, and others.

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    binary file

    Raises
    ------
    StorageError
        If it is a named pipe, a device, a socket or the like.
    OSError
        If it cannot be opened, e.g. because it is a folder.
    """
    return _open_regular(path, "rb")


def open_to_append(path: str | os.PathLike[str]) -> BinaryIO:
    """Open or create a file for appending bytes. Same result and errors as for `open_regular`."""
    return _open_regular(path, "ab")


def _open_regular(path: str | os.PathLike[str], mode: str) -> Any:
    path = os.fspath(path)
    with contextlib.suppress(FileNotFoundError):  # appending creates it
        _expect_regular(path, os.stat(path))  # since opening a device may have effects
    # Another file may replace it now: without O_NONBLOCK, opening a pipe would wait.
    more = getattr(os, "O_NONBLOCK", 0)
    file = open(path, mode, opener=lambda name, flags: os.open(name, flags | more, 0o666))  # noqa: SIM115
    try:
        _expect_regular(path, os.fstat(file.fileno()))
    except StorageError:
        file.close()
        raise
    return file


def _expect_regular(path, status):
    """Refuse what is not a regular file; folders raise their own error when they are opened."""
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise StorageError(f"{path}: not a regular file")


@contextlib.contextmanager
def expecting(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn errors about unexpected content into a StorageError that names the file.

    For reading metadata: a correct checksum does not imply the entries and types that the reader
    expects.

    Parameters
    ----------
    path : str or PathLike
    what : str
        What the file should be, for the message.
    """
    try:
        yield
    except StorageError:
        raise
    except (
        ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        text = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        if len(text) > _MAX_MESSAGE:
            text = f"{text[:_MAX_MESSAGE]} ..."
        raise StorageError(f"{os.fspath(path)}: not a valid {what}: {text}") from None


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as JSON, atomically. Same errors as for `write_atomic`."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises
    ------
    StorageError
        If it is damaged, or not a regular file.
    OSError
        If it cannot be read.
    """
    with open_regular(path) as file:
        try:
            return json.loads(file.read().decode())
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{os.fspath(path)} is damaged: {error}") from None


# Characters that move a terminal's cursor, or change the direction of the following text.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Escape control characters, as Python does, so that a terminal shows and does not obey them.

    Examples
    --------
    >>> printable("seven\\x1b[2J")
    'seven\\\\x1b[2J'
    """
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def check_name(name: Any, what: str) -> None:
    """Refuse a name that is not a string, is too long, or has control characters.

    Raises
    ------
    ValueError
    """
    if not isinstance(name, str) or len(name) > 1000 or _CONTROLS.search(name):
        raise ValueError(
            f"{what} must be a text of at most 1,000 characters, none of them a control character, "
            f"got {ascii(name)[:80]}"
        )


def _decode(file, size, kind, version):
    header, first = _read_header(file, size)
    if header["kind"] != kind:
        raise StorageError(
            f"a file of kind {repr(header['kind'])[:_MAX_MESSAGE]}, expected {kind!r}"
        )
    if header["version"] > version:
        raise StorageError(
            f"written by a newer tinybnn: version {header['version']} of {kind!r}, "
            f"this one reads up to {version}"
        )
    arrays, entries = {}, [first]
    while (frame := _read_frame(file, size)) is not None:
        entry, dtype, shape = frame
        try:
            name = entry.name.decode().removesuffix(".npy")
        except UnicodeDecodeError:
            raise StorageError("damaged: an array's name is not UTF-8") from None
        if entry.name != f"{name}.npy".encode() or name in arrays:
            raise StorageError(f"damaged: unexpected member {name!r}")
        _check_name(name)
        if len(entries) >= _MAX_MEMBERS:
            raise StorageError("damaged: too many members")
        arrays[name] = _read_array(file, entry, dtype, shape)
        entries.append(entry)

    directory = _directory(entries)
    if file.read(len(directory)) != directory or file.tell() != size:
        raise StorageError("damaged or cut off: the directory at the end is not the one expected")
    claimed = header.pop("sha256")
    if claimed != _digest(header, arrays):
        raise StorageError("damaged: the SHA-256 does not match the content")
    native = {name: a.astype(a.dtype.newbyteorder("="), copy=False) for name, a in arrays.items()}
    return native, header["metadata"]


def _read_header(file, size):
    """The header as a checked dict, and its member's entry."""
    if size > _MAX_SIZE:
        raise StorageError("larger than 4 GiB, which no tinybnn file is")
    start = file.read(4)
    file.seek(0)
    if start != b"PK\x03\x04":
        raise StorageError("not a tinybnn file" if start else "not a tinybnn file: it is empty")
    entry, dtype, shape = _read_frame(file, size, only=_HEADER)
    if dtype != np.uint8 or len(shape) != 1 or shape[0] > _MAX_HEADER:
        raise StorageError("damaged: the header is not an array of bytes of a sensible length")
    text = _read_array(file, entry, dtype, shape).tobytes()
    damaged = StorageError("damaged: the header is not one that tinybnn writes")
    try:
        header = json.loads(text.decode())
        canonical = _json(header) == text
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested without end
        raise damaged from None
    if not canonical or not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise damaged
    version = header.get("format_version")
    if _is_version(version) and version > _FORMAT_VERSION:
        raise StorageError(
            f"written by a newer tinybnn: format version {version}, "
            f"this one reads up to {_FORMAT_VERSION}"
        )
    fits = (
        header.keys() == {"format", "format_version", "kind", "version", "metadata", "sha256"}
        and _is_version(version)
        and _is_version(header["version"])
        and isinstance(header["metadata"], dict)
    )
    if not fits:
        raise damaged
    return header, entry


def _is_version(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1


# ---------------------------------------------------------------------- .npy members, zip frames


def _bytes_of(array):
    """The memory of a C-contiguous array, as a view (nbytes,) uint8."""
    return array.reshape(-1).view(np.uint8)


def _digest(header, arrays):
    """SHA-256, as hex, over the header and every array's name, dtype, shape and bytes."""
    sha = hashlib.sha256(_json(header))
    for name, array in sorted(arrays.items()):
        sha.update(_json([name, array.dtype.str, array.shape]))
        sha.update(_bytes_of(array))
    return sha.hexdigest()


def _npy_header(dtype, shape):
    """The header before an array's bytes in a ``.npy`` file (NumPy's format 1.0)."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {tuple(shape)!r}, }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"  # the array begins at a multiple of 64
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("ascii")


_NPY = re.compile(
    rb"\{'descr': '(..\d)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n", re.DOTALL
)


class _Entry(NamedTuple):
    """The varying fields in the frame of a zip member."""

    name: bytes
    crc: int
    size: int  # of the whole .npy
    offset: int  # of its local header


# Fields and their order: PKWARE's APPNOTE, sections 4.3.7, 4.3.12 and 4.3.16.
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_NEEDED = 20  # version of the zip format
_FLAGS = 0x0800  # names are UTF-8
_STORED = 0  # no compression
_TIME, _DATE = 0, 0x0021  # 1 January 1980, so that bytes do not depend on the clock


def _local_header(entry):
    name, crc, size, _ = entry
    fixed = (_NEEDED, _FLAGS, _STORED, _TIME, _DATE)
    return _LOCAL.pack(b"PK\x03\x04", *fixed, crc, size, size, len(name), 0) + name


def _directory(entries):
    """The list of members at the end of a zip."""
    fixed = (_NEEDED, _NEEDED, _FLAGS, _STORED, _TIME, _DATE)
    table = b"".join(
        _CENTRAL.pack(b"PK\x01\x02", *fixed, crc, size, size, len(name), 0, 0, 0, 0, 0, offset)
        + name
        for name, crc, size, offset in entries
    )
    last = entries[-1]
    start = last.offset + _LOCAL.size + len(last.name) + last.size
    count = len(entries)
    return table + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(table), start, 0)


def _read_frame(file, end, only=None):
    """Entry, dtype and shape of the member at the file's position; None after the last member.

    `only` is the one name to accept. Reading stops where the array's bytes begin.
    """
    offset = file.tell()
    fixed = file.read(_LOCAL.size)
    if not fixed.startswith(b"PK\x03\x04"):
        file.seek(offset)
        return None
    if len(fixed) < _LOCAL.size:
        raise StorageError("cut off within a member's header")
    _, _, _, method, _, _, crc, _, size, name_length, _ = _LOCAL.unpack(fixed)
    name = file.read(name_length)
    if only is not None and name != f"{only}.npy".encode():
        raise StorageError("not a tinybnn file: a zip without tinybnn's header")
    if method != _STORED:
        raise StorageError("it has compressed members, which tinybnn neither writes nor reads")
    entry = _Entry(name, crc, size, offset)
    if fixed + name != _local_header(entry):
        raise StorageError("damaged: a member's header is not one that tinybnn writes")
    if size > end - file.tell():
        raise StorageError(f"cut off: a member claims {size:,} bytes, the file ends before")

    start = file.read(min(10, size))
    length = struct.unpack("<H", start[8:])[0] if len(start) == 10 else 0
    npy = start + file.read(min(length, size - len(start)))
    match = _NPY.fullmatch(npy[10:])
    dtype = _DTYPES.get(match[1].decode("latin-1")) if match else None
    if dtype is None:
        raise StorageError("damaged: an array's description is not one that tinybnn writes")
    shape = tuple(int(n) for n in re.findall(rb"\d{1,19}", match[2]))
    if npy != _npy_header(dtype, shape):
        raise StorageError("damaged: an array's description is not one that tinybnn writes")
    if len(npy) + math.prod(shape) * dtype.itemsize != size:
        raise StorageError(f"damaged: shape {shape} of {dtype} does not fill a member's bytes")
    return entry, dtype, shape


def _read_array(file, entry, dtype, shape):
    """Read the array at the file's position, and check its CRC."""
    try:
        array = np.empty(shape, dtype)
    except ValueError as error:  # more dimensions than NumPy has, or (0, 10**18, 10**18)
        raise StorageError(f"damaged: shape {shape} is impossible ({error})") from None
    body = _bytes_of(array)
    if file.readinto(body) != len(body):
        raise StorageError("cut off within an array")
    if zlib.crc32(body, zlib.crc32(_npy_header(dtype, shape))) != entry.crc:
        raise StorageError("damaged: a member's CRC-32 does not match its bytes")
    return array
