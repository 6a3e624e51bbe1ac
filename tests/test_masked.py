"""The product of floats with signs by masked additions, part by part and as a whole."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn.kernels.machine import simd
from tinybnn.kernels.machine.simd import FLOATS, kernel, store, zeros
from tinybnn.kernels.signs import bits
from tinybnn.kernels.training import masked

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(1, 40 if numba.config.DISABLE_JIT else 140)
needs_compress = pytest.mark.skipif(
    "avx512f" not in simd.cpu_features(), reason="compress needs AVX-512"
)


@kernel
def sums_of_list(values, places, end, words, offset, more, out):
    """The sums of a list in 128 columns."""
    sums = zeros(64), zeros(64)
    low, high = masked.add_listed(values, places, 0, end, words, offset, more, sums)
    store(out, 0, low)
    store(out, 64, high)


def by_masks(grad, signs):
    """``grad @ signs`` by the parts of the kernels, at most 128 columns."""
    (rows, length), columns = grad.shape, signs.shape[1]
    words = bits.pack_reference(signs)  # (K, 1 or 2)
    starts = np.arange(length, dtype=np.int32) * words.shape[1]
    values, places = np.zeros(length + FLOATS, np.float32), np.zeros(length + FLOATS, np.int32)
    out, sums = np.zeros((rows, 128), np.float32), np.zeros(128, np.float32)
    for row in range(rows):
        end, total = masked.list_nonzero(
            grad.reshape(-1), row * length, length, 1, starts, 0, values, places, 0
        )
        sums_of_list(values, places, end, words.reshape(-1), 0, words.shape[1] - 1, sums)
        out[row] = 2 * sums - total
    return out[:, :columns]


@needs_compress
@given(seeds, st.integers(1, 4), lengths, st.integers(1, 128), st.sampled_from([0, 0.25, 1]))
def test_product(seed, rows, length, columns, density):
    rng = np.random.default_rng(seed)
    grad = rng.integers(-9, 10, (rows, length)) * (rng.random((rows, length)) < density)
    grad, signs = grad.astype(np.float32), rng.choice([-1, 1], (length, columns))
    expected = masked.product_reference(grad, signs)
    assert np.array_equal(by_masks(grad, signs), expected)


@given(seeds, st.integers(0, 4), lengths, lengths)
def test_reference(seed, rows, length, columns):
    rng = np.random.default_rng(seed)
    grad = rng.integers(-3, 4, (rows, length)).astype(np.float32)
    signs = rng.choice([-1, 1], (length, columns))
    result = masked.product_reference(grad, signs)
    assert result.dtype == np.float32 and np.array_equal(result, grad @ signs)


@needs_compress
@given(seeds, st.integers(0, 50), st.integers(1, 3), st.integers(0, 3))
def test_list(seed, count, step, before):
    """Behind what the list holds; NaN is no zero, and -0.0 is one."""
    rng = np.random.default_rng(seed)
    special = np.array([0, 0, -0.0, 1, -2, 3, np.nan], np.float32)
    grad = rng.choice(special, 5 + 50 * step)
    starts = rng.integers(0, 2**31, 60, dtype=np.int32)
    values, places = np.full(80, 7, np.float32), np.full(80, 7, np.int32)
    end, total = masked.list_nonzero(grad, 5, count, step, starts, 3, values, places, before)
    seen, numbers = grad[5 : 5 + count * step : step], starts[3 : 3 + count]
    assert end == before + np.count_nonzero(seen)
    assert np.array_equal(values[before:end], seen[seen != 0], equal_nan=True)
    assert np.array_equal(places[before:end], numbers[seen != 0])
    assert np.all(values[:before] == 7) and np.all(places[:before] == 7)
    assert np.array_equal(total, seen.sum(), equal_nan=True)
