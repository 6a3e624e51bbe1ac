"""Checks of kernels' arguments, with uniform messages; plain NumPy.

Each check takes the function's name, which begins the message of its ValueError, and the name of
the argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.kernels.machine.layout import described, for_kernel, words_for
from tinybnn.kernels.machine.memory import empty

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from tinybnn.typing import Array, Shape, Words

MOST_TERMS = 2**31 - 1  # signs whose sum int32 always holds


def check_words(function: str, name: str, array: ArrayLike, axes: int) -> Words:
    """Return ``array`` as words for a kernel; a ValueError unless uint64 with ``axes`` axes."""
    array = np.asarray(array)
    if array.dtype != np.uint64 or array.ndim != axes:
        raise ValueError(
            f"{function}: {name} must be uint64 with {axes} axes, "
            f"got {array.dtype} of shape {array.shape}"
        )
    return for_kernel(array)


def check_row(function: str, name: str, words: Words, count_name: str, count: int) -> None:
    """Raise a ValueError unless the last axis of ``words`` has words_for(count) words."""
    check_width(function, name, words.shape[-1], count_name, count)


def check_width(function: str, name: str, words: int, count_name: str, count: int) -> None:
    """Raise a ValueError unless ``words`` is words_for(count)."""
    if count < 1:
        raise ValueError(f"{function}: {count_name} must be positive, got {count}")
    if words != words_for(count):
        raise ValueError(
            f"{function}: {name} has {words} words a row, "
            f"{count_name} {count} needs {words_for(count)}"
        )


def check_terms(function: str, count_name: str, count: int) -> None:
    """Raise a ValueError unless int32 holds every sum of ``count`` signs."""
    if count > MOST_TERMS:
        raise ValueError(
            f"{function}: {count_name} must be at most {MOST_TERMS}, since sums are int32, "
            f"got {count}"
        )


def check_vector(function: str, name: str, array: Array, dtype: DTypeLike, channels: int) -> None:
    """Raise a ValueError unless ``array`` is (channels,) of ``dtype``."""
    if array.dtype != dtype or array.shape != (channels,):
        raise ValueError(
            f"{function}: {name} must be {np.dtype(dtype)} of shape ({channels},), "
            f"got {array.dtype} of shape {array.shape}"
        )


def check_floats(function: str, name: str, array: Array, shape: Shape | str) -> None:
    """Raise a ValueError unless ``array`` is float32 of this shape, contiguous and writable."""
    if array.shape != shape or array.dtype != np.float32 or not array.flags.carray:
        raise ValueError(
            f"{function}: {name} must be C-contiguous float32 of shape {shape}, "
            f"got {described(array)} with strides {array.strides}"
        )


def check_groups(function: str, channels: int, filters: int, groups: int) -> None:
    """Raise a ValueError unless ``groups`` divides the channels of the input and of the output."""
    if channels < 1:
        raise ValueError(f"{function}: channels must be positive, got {channels}")
    if groups < 1 or channels % groups or filters % groups:
        raise ValueError(
            f"{function}: groups must divide {channels} input channels and {filters} output "
            f"channels, got {groups}"
        )


def check_padding_mode(function: str, mode: str) -> None:
    """Raise a ValueError unless ``mode`` is one that is exact on bits."""
    if mode not in ("zeros", "ones"):
        raise ValueError(f'{function}: padding_mode must be "zeros" or "ones", got {mode!r}')


def out_array(function: str, out: Array, shape: Shape, dtype: DTypeLike = np.float32) -> Array:
    """Return the caller's array for a result, or a new one; a ValueError if it does not match."""
    if out is None:
        return empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.carray:
        raise ValueError(
            f"{function}: out must be contiguous {np.dtype(dtype)} of shape {shape}, "
            f"got {described(out)}"
        )
    return out
