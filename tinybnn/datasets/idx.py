"""The IDX format of MNIST: arrays with a big-endian header.

Layout: two zero bytes, one byte for the dtype, one for the number of dimensions, each dimension as
a 4-byte integer, then the elements (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import struct

import numpy as np

from tinybnn.datasets.files import GZIP_MAGIC, DatasetError, open_data

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# Drawings shrink to about a fifth. What unpacks to much more is made to fill the memory.
_GZIP_MAX_RATIO, _GZIP_FREE = 10, 1 << 24
_NUMPY_MAX_DIMS = 64
_CHUNK = 1 << 20  # bytes


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
        What the file cannot hold is refused before memory is taken for it, and so is a gzipped
        file that would unpack to more than ten times its size and 16 MiB.
    OSError
        If the file cannot be read.
    """
    with open_data(path) as (raw, size):
        zipped = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        if not zipped:
            return _read(raw, size)
        with gzip.GzipFile(fileobj=raw) as file:
            return _read(file, _GZIP_MAX_RATIO * size + _GZIP_FREE)


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
    try:
        array = np.empty(shape, dtype)
    except ValueError as error:  # a dimension of 0 beside ones whose product overflows
        raise DatasetError(f"shape {shape} is impossible ({error})") from None
    body = array.reshape(-1).view(np.uint8)
    found = 0
    while found < promised and (count := file.readinto(body[found : found + _CHUNK])):
        found += count
    if found < promised or file.read(1):
        found = f"{found:,}" if found < promised else "more"
        raise DatasetError(f"shape {shape} needs {promised:,} bytes, the file has {found}")
    return array if dtype.isnative else array.byteswap(inplace=True).view(dtype.newbyteorder("="))
