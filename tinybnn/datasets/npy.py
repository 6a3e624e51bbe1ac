"""NumPy's ``.npy`` files from anywhere: nothing is unpickled, and nothing larger than the file."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np

from tinybnn.datasets.files import DatasetError, open_data

_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 1 << 16  # bytes
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def is_npy(start):
    """Whether the first bytes of a file are those of a ``.npy`` file."""
    return start[: len(_MAGIC)] == _MAGIC


def read_npy(path):
    """Read the array of a ``.npy`` file.

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    numpy.ndarray
        Of booleans, integers or floats.

    Raises
    ------
    DatasetError
        If it is not such a file, or does not hold as many bytes as its header says: then no memory
        is taken for them.
    OSError
        If the file cannot be read.
    """
    with open_data(path) as (file, size):
        # From memory, where reading a length that a file makes up takes none.
        start = io.BytesIO(file.read(_MOST_HEADER))
        try:
            version = np.lib.format.read_magic(start)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Python's parser and of files of Python 2
                shape, fortran, dtype = _HEADERS[version](start)
        except Exception as error:  # the header is a literal of Python, which may be anything
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DatasetError(f"not a readable .npy file ({text})") from None
        file.seek(start.tell())
        if dtype.kind not in "biuf":
            raise DatasetError(f"not a readable .npy file of numbers: it holds {dtype}")
        if any(type(n) is not int or n < 0 for n in shape):
            raise DatasetError(f"shape {shape} is impossible")
        needed, found = math.prod(shape) * dtype.itemsize, size - file.tell()
        if needed != found:
            raise DatasetError(f"shape {shape} needs {needed:,} bytes, the file has {found:,}")
        try:
            array = np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")
        except ValueError as error:  # too many dimensions, or a 0 beside ones that overflow
            raise DatasetError(f"shape {shape} is impossible ({error})") from None
    return array
