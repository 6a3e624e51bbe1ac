"""Opening untrusted files, for all readers of this room."""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from tinybnn.storage import StorageError, open_regular


class DatasetError(ValueError):
    """Data that is malformed, or not what its name promises."""


@contextlib.contextmanager
def open_data(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file for reading; prefix a DatasetError raised inside with the path.

    Yields
    ------
    file : binary file
    size : int
        Number of bytes in the file.

    Raises
    ------
    DatasetError
        If the path is not a regular file, and in place of the errors of the gzip decoder.
    OSError
        If the file cannot be opened or read.
    """
    name = os.fspath(path)
    try:
        opened = open_regular(path)
    except StorageError as error:
        raise DatasetError(str(error)) from None
    with opened as file:
        try:
            yield file, os.fstat(file.fileno()).st_size
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetError(f"{name}: the gzip data is damaged ({error})") from None


@contextlib.contextmanager
def open_unzipped(
    path: str | os.PathLike[str], ratio: int, free: int
) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file that may be gzipped (detected by its first bytes) for reading its content.

    Parameters
    ----------
    path : str or PathLike
    ratio, free : int
        A gzipped file may unpack to ``ratio`` times its size and ``free`` bytes; readers must
        refuse more, since much larger ratios mean a decompression bomb.

    Yields
    ------
    file : binary file
    most : int
        The most bytes that the reader may take.

    Raises
    ------
    DatasetError, OSError
        As `open_data` does.
    """
    with open_data(path) as (file, size):
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if zipped:
            yield gzip.GzipFile(fileobj=file), ratio * size + free
        else:
            yield file, size
