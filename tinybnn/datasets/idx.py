"""The IDX format of MNIST: arrays with a big-endian header.

Layout: two zero bytes, one byte for the dtype, one for the number of dimensions, each dimension as
a 4-byte integer, then the elements (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import math
import os
import struct

import numpy as np

from tinybnn.datasets.files import DatasetError, open_unzipped
from tinybnn.typing import Array

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_RATIO, _FREE = 10, 1 << 24  # drawings shrink to about a fifth
_NUMPY_MAX_DIMS = 64
_CHUNK = 1 << 20  # bytes


def read_idx(path: str | os.PathLike[str]) -> Array:
    """Read the array of an IDX file, raw or gzipped (detected by the first bytes).

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    numpy.ndarray
        Shape and dtype as in the header (8- to 32-bit integers, float32, float64), in native byte
        order.

    Raises
    ------
    DatasetError
        If the file is not IDX, is damaged, or has fewer or more bytes than its header promises.
        Memory is allocated only for arrays that the file can hold; a gzipped file that would unpack
        to more than ten times its size and 16 MiB is refused.
    OSError
        If the file cannot be read.
    """
    with open_unzipped(path, _MAX_RATIO, _FREE) as (file, most):
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
        needed = math.prod(shape) * dtype.itemsize
        if needed > most:
            raise DatasetError(f"shape {shape} needs {needed:,} bytes, more than the file can hold")
        try:
            array = np.empty(shape, dtype)
        except ValueError as error:  # a dimension of 0 beside others whose product overflows
            raise DatasetError(f"shape {shape} is impossible ({error})") from None
        body, size = array.reshape(-1).view(np.uint8), 0
        while size < needed and (count := file.readinto(body[size : size + _CHUNK])):
            size += count
        if size < needed or file.read(1):
            held = f"{size:,}" if size < needed else "more"
            raise DatasetError(f"shape {shape} needs {needed:,} bytes, the file has {held}")
        return array.astype(dtype.newbyteorder("="), copy=False)
