"""The IDX format of MNIST: arrays with a big-endian header.

Layout: two zero bytes, one byte for the dtype, one for the number of dimensions, each dimension as
a 4-byte integer, then the elements (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib

import numpy as np

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_MAX_RATIO = 1032  # DEFLATE cannot shrink its input further
_NUMPY_MAX_DIMS = 64


class DatasetError(ValueError):
    """Data that is malformed, or not what its name promises."""


def read_idx(path):
    """Read one array from an IDX file, raw or gzipped (the first bytes tell which).

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    numpy.ndarray
        Of the header's shape and dtype (8- to 32-bit integers, float32, float64), in native byte
        order.

    Raises
    ------
    DatasetError
        If the file is not IDX, is damaged, or has fewer or more bytes than its header promises.
        What the file cannot hold is refused before memory is taken for it.
    OSError
        If the file cannot be read.
    """
    name = os.fspath(path)
    with open(path, "rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        zipped = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        try:
            if not zipped:
                return _read(raw, size)
            with gzip.GzipFile(fileobj=raw) as file:
                return _read(file, _GZIP_MAX_RATIO * size)
        except DatasetError as error:
            raise DatasetError(f"{name}: {error}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetError(f"{name}: the gzip data is damaged ({error})") from None


def _read(file, most):
    """The array in an open IDX file that cannot have more than `most` bytes."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise DatasetError(f"not an IDX file: it begins with {start.hex(' ') or 'nothing'}")
    code, ndim = start[2:]
    if code not in _DTYPES:
        raise DatasetError(f"not an IDX file: unknown dtype code 0x{code:02x}")
    if not 1 <= ndim <= _NUMPY_MAX_DIMS:
        raise DatasetError(f"{ndim} dimensions, expected 1 to {_NUMPY_MAX_DIMS}")
    lengths = file.read(4 * ndim)
    if len(lengths) < 4 * ndim:
        raise DatasetError("cut off within the header")
    shape = struct.unpack(f">{ndim}I", lengths)
    dtype = np.dtype(_DTYPES[code])
    promised = math.prod(shape) * dtype.itemsize
    if promised > most:
        raise DatasetError(f"shape {shape} needs {promised:,} bytes, more than the file can hold")
    data = file.read(promised + 1)
    if len(data) != promised:
        found = "more" if len(data) > promised else f"{len(data):,}"
        raise DatasetError(f"shape {shape} needs {promised:,} bytes, the file has {found}")
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # a dimension of 0 beside ones whose product overflows
        raise DatasetError(f"shape {shape} is impossible ({error})") from None
    return array.astype(dtype.newbyteorder("="))
