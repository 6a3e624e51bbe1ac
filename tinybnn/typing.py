"""Types that the public API's hints share; nothing here exists at run time but names."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]  # of any dtype and shape; docstrings give both
FloatArray: TypeAlias = NDArray[np.floating[Any]]
Words: TypeAlias = NDArray[np.uint64]  # rows of packed signs
Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = int | tuple[int, int]  # as kernel_size, stride, padding and dilation take it
