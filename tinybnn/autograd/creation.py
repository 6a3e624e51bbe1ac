"""New Tensors, under PyTorch's names.

Floats are Tensors, float32 by default; integers and bools are NumPy arrays, such as
``arange(3)`` and ``zeros(3, dtype=int64)``.
"""

from __future__ import annotations

import numpy as np

from tinybnn.autograd.engine import FLOATS, as_array, check_dtype
from tinybnn.autograd.random import default_generator
from tinybnn.autograd.tensor import Tensor, check_device, one_tuple

float32, float64, int64 = np.float32, np.float64, np.int64


def from_numpy(array):
    """A Tensor on the memory of an array of floats; integers and bools stay the array."""
    return _made(np.asarray(array), None, False, None)


def as_tensor(data, dtype=None, device=None):
    """Data as a Tensor, without a copy where it has the dtype; integers and bools as an array."""
    if isinstance(data, Tensor):
        check_device("as_tensor", device)
        return data if dtype is None else data.to(dtype)
    is_array = isinstance(data, np.ndarray | np.generic)
    array = np.asarray(data)
    if dtype is None and array.dtype.kind == "f" and not is_array:
        dtype = np.float32
    return _made(array, dtype, False, device)


def tensor(data, *, dtype=None, device=None, requires_grad=False):
    """A copy of data as a Tensor, of integers and bools as an array: ``tinybnn.tensor(data)``."""
    found = np.array(as_array(as_tensor(as_array(data))))
    return _made(found, dtype, requires_grad, device)


def zeros(*size, dtype=None, device=None, requires_grad=False):
    """A Tensor of zeros; an array for a dtype of integers or bools."""
    return full(one_tuple(size), 0.0, _default(dtype), device, requires_grad)


def ones(*size, dtype=None, device=None, requires_grad=False):
    """A Tensor of ones; an array for a dtype of integers or bools."""
    return full(one_tuple(size), 1.0, _default(dtype), device, requires_grad)


def full(size, fill_value, dtype=None, device=None, requires_grad=False):
    """A Tensor of one value; an array where that is an int or a bool, or the dtype is such."""
    if dtype is None and isinstance(fill_value, float | np.floating):
        dtype = np.float32
    return _made(np.full(size, fill_value, dtype), None, requires_grad, device)


def arange(start, end=None, step=1, dtype=None, device=None, requires_grad=False):
    """Numbers from start (0) up to, but without, end: an int64 array, or a Tensor of floats."""
    start, end = (0, start) if end is None else (start, end)
    if dtype is None and any(isinstance(x, float | np.floating) for x in (start, end, step)):
        dtype = np.float32
    return _made(np.arange(start, end, step).astype(dtype or np.int64), None, requires_grad, device)


def rand(*size, generator=None, dtype=None, device=None, requires_grad=False):
    """Uniform numbers in [0, 1), by a numpy.random.Generator (that of `manual_seed`)."""
    rng = default_generator() if generator is None else generator
    return _random("rand", rng.random, one_tuple(size), dtype, device, requires_grad)


def randn(*size, generator=None, dtype=None, device=None, requires_grad=False):
    """Standard normal numbers, by a numpy.random.Generator (that of `manual_seed`)."""
    rng = default_generator() if generator is None else generator
    return _random("randn", rng.standard_normal, one_tuple(size), dtype, device, requires_grad)


def zeros_like(x, dtype=None, device=None, requires_grad=False):
    """Zeros of the shape and dtype of a Tensor or an array."""
    return full_like(x, 0, dtype, device, requires_grad)


def ones_like(x, dtype=None, device=None, requires_grad=False):
    """Ones of the shape and dtype of a Tensor or an array."""
    return full_like(x, 1, dtype, device, requires_grad)


def full_like(x, fill_value, dtype=None, device=None, requires_grad=False):
    """One value in the shape and dtype of a Tensor or an array."""
    return _made(np.full_like(as_array(x), fill_value, dtype), None, requires_grad, device)


def rand_like(x, dtype=None, device=None, requires_grad=False):
    """Uniform numbers in [0, 1) of the shape and dtype of a Tensor."""
    return rand(x.shape, dtype=dtype or x.dtype, device=device, requires_grad=requires_grad)


def randn_like(x, dtype=None, device=None, requires_grad=False):
    """Standard normal numbers of the shape and dtype of a Tensor."""
    return randn(x.shape, dtype=dtype or x.dtype, device=device, requires_grad=requires_grad)


def _default(dtype):
    return np.float32 if dtype is None else dtype


def _random(name, draw, size, dtype, device, requires_grad):
    check_dtype(_default(dtype), name)
    return _made(np.asarray(draw(size)), _default(dtype), requires_grad, device)


def _made(array, dtype, requires_grad, device):
    """A Tensor of floats, else the array."""
    check_device("device", device)
    array = array if dtype is None else array.astype(dtype, copy=False)
    if array.dtype in FLOATS:
        return Tensor(array, requires_grad=requires_grad)
    if requires_grad:
        raise TypeError(
            f"requires_grad: only floats have a gradient, got {array.dtype}; name the dtype float32"
        )
    return array
