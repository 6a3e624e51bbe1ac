"""Opening files that nobody vouches for: what every reader of this room has in common."""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
import zlib


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
        If the path is no regular file (opening a pipe would wait for ever), and instead of the
        exceptions that the decoder of gzip raises.
    OSError
        If the file cannot be opened or read.
    """
    name = os.fspath(path)
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder has an error of its own
        raise DatasetError(f"{name}: not a regular file")
    with open(path, "rb") as file:
        try:
            yield file, os.fstat(file.fileno()).st_size
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetError(f"{name}: the gzip data is damaged ({error})") from None
