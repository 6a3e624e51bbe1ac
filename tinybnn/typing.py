"""Types that the public API's hints share; nothing here exists at run time but names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from tinybnn.autograd.tensor import Tensor

Array: TypeAlias = NDArray[Any]  # of any dtype and shape; docstrings give both
FloatArray: TypeAlias = NDArray[np.floating[Any]]
Words: TypeAlias = NDArray[np.uint64]  # rows of packed signs
Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = int | tuple[int, int]  # as kernel_size, stride, padding and dilation take it
Dims: TypeAlias = int | Sequence[int] | None  # axes to reduce; None: all of them
TensorLike: TypeAlias = "Tensor | ArrayLike"  # what an operation converts to a Tensor
V = TypeVar("V", "Tensor", Array)  # arrays in, arrays out; Tensors in, Tensors out
