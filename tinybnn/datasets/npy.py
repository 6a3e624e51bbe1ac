"""NumPy's ``.npy`` files from any source: nothing is unpickled or allocated beyond their size."""

from __future__ import annotations

import io
import math
import os
import warnings

import numpy as np

from tinybnn.datasets.files import DatasetError, open_data
from tinybnn.typing import Array

_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 1 << 16  # bytes
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def is_npy(start: bytes) -> bool:
    """Tell whether the first bytes of a file are those of a ``.npy`` file."""
    return start[: len(_MAGIC)] == _MAGIC


def read_npy(path: str | os.PathLike[str]) -> Array:
    """Read the array of a ``.npy`` file.

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    numpy.ndarray
        Booleans, integers or floats, in the shape and dtype of the header.

    Raises
    ------
    DatasetError
        If it is not such a file, or does not hold as many bytes as its header says; memory is
        allocated only for bytes that are there.
    OSError
        If the file cannot be read.
    """
    with open_data(path) as (file, size):
        # From memory, where reading a made-up length allocates nothing.
        start = io.BytesIO(file.read(_MOST_HEADER))
        try:
            version = np.lib.format.read_magic(start)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # from Python's parser, and about Python 2's files
                shape, fortran, dtype = _HEADERS[version](start)
        except Exception as error:  # the header is a Python literal, which may be anything
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DatasetError(f"not a readable .npy file ({text})") from None
        file.seek(start.tell())
        if dtype.kind not in "biuf":
            raise DatasetError(f"not a readable .npy file of numbers: it holds {dtype}")
        if any(type(n) is not int or n < 0 for n in shape):
            raise DatasetError(f"shape {shape} is impossible")
        needed, held = math.prod(shape) * dtype.itemsize, size - file.tell()
        if needed != held:
            raise DatasetError(f"shape {shape} needs {needed:,} bytes, the file has {held:,}")
        try:
            return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")
        except ValueError as error:  # too many dimensions, or a 0 beside others that overflow
            raise DatasetError(f"shape {shape} is impossible ({error})") from None
