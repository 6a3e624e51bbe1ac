"""Which data become arrays of floats, and which dtypes a Tensor can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from tinybnn.typing import FloatArray

FLOATS: tuple[np.dtype[Any], ...] = (np.dtype(np.float32), np.dtype(np.float64))


def as_floats(data: ArrayLike, dtype: DTypeLike | None, name: str) -> FloatArray:
    """Convert data to an array of floats; errors begin with `name`.

    Parameters
    ----------
    data : array_like, of any shape
    dtype : float32, float64 or None
        By default the data's own dtype if it is one of these, else float32.
    name : str

    Returns
    -------
    array of the data's shape
        The data are not copied if they have the dtype already.
    """
    if dtype is None and type(data) is np.ndarray and data.dtype in FLOATS:
        return data
    if dtype is not None:
        check_dtype(dtype, name)
    array = np.asarray(data)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "biu" and not (kind == "f" and size in (4, 8)):
        raise TypeError(
            f"{name}: expects float32, float64, integers or bools, got {array.dtype}; convert "
            "the data first, for example with .astype(np.float32)"
        )
    if dtype is None:
        is_double = isinstance(data, np.ndarray | np.generic) and kind == "f" and size == 8
        dtype = np.float64 if is_double else np.float32
    return np.asarray(array, dtype)


def check_dtype(dtype: DTypeLike, name: str) -> None:
    """Raise a TypeError that begins with `name` unless the dtype is float32 or float64."""
    if np.dtype(dtype) not in FLOATS:
        raise TypeError(f"{name}: dtype must be float32 or float64, got {np.dtype(dtype)}")


def plain(value: Any) -> Any:
    """Convert NumPy scalars to Python numbers, whose products with float32 arrays stay float32.

    Lists and tuples become tuples of such numbers; anything else is returned unchanged.
    """
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value
