"""Bit-exact choices between floats in plain NumPy, and equality of bits.

Equal floats have equal bits, except 0 and -0, which a division turns into +inf and -inf. Which of
the two ``np.maximum`` returns depends on NumPy's version, the CPU and the array. Here, and in every
kernel and operation that chooses between floats, the first operand wins a tie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import Array


def identical(a: ArrayLike, b: ArrayLike) -> NDArray[np.bool_]:
    """Tell where two arrays have the same bits; all NaNs count as the same.

    Parameters
    ----------
    a, b : arrays of real numbers
        Their shapes must broadcast.

    Returns
    -------
    array of bool
    """
    if np.result_type(a, b).kind != "f":
        return np.equal(a, b)
    same = np.equal(a, b) & (np.signbit(a) == np.signbit(b))
    return same | (np.isnan(a) & np.isnan(b))


def maximum(a: Array, b: Array) -> Array:
    """Return ``a`` where it is at least ``b``, else ``b``; NaN where either is; any shapes."""
    return np.where((a >= b) | np.isnan(a), a, b)


def minimum(a: Array, b: Array) -> Array:
    """Return ``a`` where it is at most ``b``, else ``b``; NaN where either is; any shapes."""
    return np.where((a <= b) | np.isnan(a), a, b)
