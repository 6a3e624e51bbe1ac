"""How arrays lie in memory."""

import numpy as np
import pytest

from tinybnn.kernels import layout


@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (70, 600), (5000,)])
@pytest.mark.parametrize("dtype", [np.int32, np.uint64])
def test_aligned(shape, dtype):
    for _ in range(5):
        array = layout.aligned(shape, dtype)
        assert array.shape == shape and array.dtype == dtype
        assert array.flags.c_contiguous and array.flags.writeable
        assert array.ctypes.data % 64 == 0 or not array.size
