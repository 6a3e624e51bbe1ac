"""Opening files that nobody vouches for: what every reader of this room has in common."""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib

from tinybnn.storage import StorageError, open_regular

GZIP_MAGIC = b"\x1f\x8b"


class DatasetError(ValueError):
    """Data that is malformed, or not what its name promises."""


@contextlib.contextmanager
def open_data(path):
    """Open a file for reading; a DatasetError raised inside gets the path in front.

    Yields
    ------
    file : binary file
    size : int
        Its number of bytes.

    Raises
    ------
    DatasetError
        If the path is no regular file, and instead of the exceptions that the decoder of gzip
        raises.
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
