"""New Tensors, under PyTorch's names.

Floats become Tensors, float32 by default; integers and bools stay NumPy arrays, as in
``arange(3)`` and ``zeros(3, dtype=int64)``. `size` is the shape: ``zeros(2, 3)`` or
``zeros((2, 3))``. `device` may only be the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd.engine import as_array
from tinybnn.autograd.floats import FLOATS, check_dtype
from tinybnn.autograd.random import default_generator
from tinybnn.autograd.tensor import Tensor, check_device, one_tuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike

    from tinybnn.typing import TensorLike

float32: type[np.float32] = np.float32
float64: type[np.float64] = np.float64
int64: type[np.int64] = np.int64


def from_numpy(array: ArrayLike) -> Any:
    """Make a Tensor on an array of floats of any shape; return integers and bools unchanged."""
    return _made(np.asarray(array), None, False, None)


def as_tensor(data: TensorLike, dtype: DTypeLike | None = None, device: str | None = None) -> Any:
    """Convert data of any shape to a Tensor, integers and bools to an array.

    Data that has the dtype is not copied.
    """
    if isinstance(data, Tensor):
        check_device("as_tensor", device)
        return data if dtype is None else data.to(dtype)
    is_array = isinstance(data, np.ndarray | np.generic)
    array = np.asarray(data)
    if dtype is None and array.dtype.kind == "f" and not is_array:
        dtype = np.float32
    return _made(array, dtype, False, device)


def tensor(
    data: TensorLike,
    *,
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Copy data of any shape to a Tensor, integers and bools to an array.

    Users call it as ``tinybnn.tensor(data)``.
    """
    copy = np.array(as_array(as_tensor(as_array(data))))
    return _made(copy, dtype, requires_grad, device)


def zeros(
    *size: int | Sequence[int],
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Make a Tensor of zeros; an array for an integer or bool dtype."""
    return full(one_tuple(size), 0.0, _default(dtype), device, requires_grad)


def ones(
    *size: int | Sequence[int],
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Make a Tensor of ones; an array for an integer or bool dtype."""
    return full(one_tuple(size), 1.0, _default(dtype), device, requires_grad)


def full(
    size: int | Sequence[int],
    fill_value: float,
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Make a Tensor of a single value; an array for an int or bool value or dtype."""
    if dtype is None and isinstance(fill_value, float | np.floating):
        dtype = np.float32
    return _made(np.full(size, fill_value, dtype), None, requires_grad, device)


def arange(
    start: float,
    end: float | None = None,
    step: float = 1,
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Count from start (default: 0) to end, which is excluded: an int64 array, or a float Tensor.

    The result has one axis, of ceil((end - start) / step) elements.
    """
    start, end = (0, start) if end is None else (start, end)
    if dtype is None and any(isinstance(x, float | np.floating) for x in (start, end, step)):
        dtype = np.float32
    return _made(np.arange(start, end, step).astype(dtype or np.int64), None, requires_grad, device)


def rand(
    *size: int | Sequence[int],
    generator: np.random.Generator | None = None,
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Draw uniform numbers in [0, 1) of shape `size` (`generator`: that of `manual_seed`)."""
    rng = default_generator() if generator is None else generator
    return _random("rand", rng.random, one_tuple(size), dtype, device, requires_grad)


def randn(
    *size: int | Sequence[int],
    generator: np.random.Generator | None = None,
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Draw standard normal numbers of shape `size` (`generator`: that of `manual_seed`)."""
    rng = default_generator() if generator is None else generator
    return _random("randn", rng.standard_normal, one_tuple(size), dtype, device, requires_grad)


def zeros_like(
    x: TensorLike,
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Make zeros of the shape and dtype of a Tensor or an array."""
    return full_like(x, 0, dtype, device, requires_grad)


def ones_like(
    x: TensorLike,
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Make ones of the shape and dtype of a Tensor or an array."""
    return full_like(x, 1, dtype, device, requires_grad)


def full_like(
    x: TensorLike,
    fill_value: float,
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Any:
    """Fill the shape and dtype of a Tensor or an array with a single value."""
    return _made(np.full_like(as_array(x), fill_value, dtype), None, requires_grad, device)


def rand_like(
    x: Tensor,
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Draw uniform numbers in [0, 1), in the shape and dtype of a Tensor."""
    return rand(x.shape, dtype=dtype or x.dtype, device=device, requires_grad=requires_grad)


def randn_like(
    x: Tensor,
    dtype: DTypeLike | None = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Draw standard normal numbers, in the shape and dtype of a Tensor."""
    return randn(x.shape, dtype=dtype or x.dtype, device=device, requires_grad=requires_grad)


def _default(dtype: DTypeLike | None):
    return np.float32 if dtype is None else dtype


def _random(
    name,
    draw,
    size: int | Sequence[int],
    dtype: DTypeLike | None,
    device: str | None,
    requires_grad: bool,
):
    check_dtype(_default(dtype), name)
    return _made(np.asarray(draw(size)), _default(dtype), requires_grad, device)


def _made(array: ArrayLike, dtype: DTypeLike | None, requires_grad: bool, device: str | None):
    """Make a Tensor of an array of floats; return other arrays unchanged."""
    check_device("device", device)
    array = array if dtype is None else array.astype(dtype, copy=False)
    if array.dtype in FLOATS:
        return Tensor(array, requires_grad=requires_grad)
    if requires_grad:
        raise TypeError(
            f"requires_grad: only floats have a gradient, got {array.dtype}; name the dtype float32"
        )
    return array
