"""Vector operations of the gradients of binary layers, compiled and as plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn.kernels.machine.selection import (
    add_where,
    compress,
    count_ones,
    four_signs,
    nonzero,
)
from tinybnn.kernels.machine.simd import (
    cpu_features,
    kernel,
    load,
    load_splat,
    load_strided,
    store,
    total,
)

seeds = st.integers(0, 2**32 - 1)


def both(function, *arguments):
    """The results of a kernel compiled and as plain Python: what it returns and what it wrote."""
    plain = getattr(function, "py_func", function)
    results = []
    for call in (function, plain):
        copies = [array.copy() if isinstance(array, np.ndarray) else array for array in arguments]
        results.append((call(*copies), copies[-1]))
    return results


def same(a, b):
    """Equal to the last bit."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def integers(rng, *shape):
    return rng.integers(-(2**31), 2**31, shape, np.int32)


def lanes_set(bits):
    return np.array([int(bits) >> lane & 1 for lane in range(16)], bool)


# ---------------------------------------------------------------------------------------- selection


@kernel
def numbers_of(words, out):
    store(out, 0, four_signs(words[0], words[1], words[2], words[3]))
    return count_ones(words[0])


@given(seeds)
def test_four_signs(seed):
    words = np.random.default_rng(seed).integers(0, 2**64, 4, np.uint64)
    (ones, one), (same_ones, two) = both(numbers_of, words, np.zeros(4, np.int32))
    assert same(one, two)
    assert np.array_equal(
        one.view(np.uint8), sum(lanes_set(w) * 16 << i for i, w in enumerate(words))
    )
    assert ones == same_ones == int(words[0]).bit_count()


@kernel
def add_to_lanes(a, bits, out):
    store(out, 0, add_where(load(a, 0), load_splat(a, 16), bits))
    return nonzero(load(a, 0))


@given(seeds)
def test_addition_in_chosen_lanes(seed):
    rng = np.random.default_rng(seed)
    a = rng.choice(np.array([0, -0.0, 1.5, -2.5, 1e-45, np.inf], np.float32), 17)
    a[rng.integers(0, 16)] = np.nan
    bits = rng.integers(0, 2**64, None, np.uint64)
    (mask, one), (same_mask, two) = both(add_to_lanes, a, bits, np.zeros(16, np.float32))
    assert np.array_equal(one, two, equal_nan=True)
    with np.errstate(invalid="ignore"):
        expected = np.where(lanes_set(bits), a[:16] + a[16], a[:16])
    assert np.array_equal(one, expected, equal_nan=True)
    assert mask == same_mask and np.array_equal(lanes_set(mask), a[:16] != 0) and mask < 2**16


@kernel
def to_the_front(a, bits, out):
    store(out, 0, compress(load(a, 0), bits))


@pytest.mark.skipif("avx512f" not in cpu_features(), reason="needs AVX-512")
@given(seeds, st.sampled_from([np.float32, np.int32]))
def test_compress(seed, dtype):
    rng = np.random.default_rng(seed)
    a, bits = rng.integers(1, 100, 16).astype(dtype), rng.integers(0, 2**64, None, np.uint64)
    (_, one), (_, two) = both(to_the_front, a, bits, np.full(16, 7, dtype))
    kept = a[lanes_set(bits)]
    assert same(one, two) and same(one, np.append(kept, np.zeros(16 - len(kept), dtype)))


# --------------------------------------------------------------------------------------------- simd


@kernel
def strided(a, step, out):
    store(out, 0, load_strided(a, 2, step))


@given(seeds, st.integers(1, 5), st.sampled_from([np.uint64, np.int32, np.float32]))
def test_load_strided(seed, step, dtype):
    a = np.random.default_rng(seed).integers(0, 2**20, 2 + 16 * step).astype(dtype)
    lanes = 8 if dtype == np.uint64 else 16
    (_, one), (_, two) = both(strided, a, step, np.zeros(lanes, dtype))
    assert same(one, two) and same(one, a[2 : 2 + lanes * step : step])


@kernel
def add_up(a):
    return total(load(a, 1))


@given(seeds)
def test_total(seed):
    """In the same order compiled and not, so that real numbers have the same sum."""
    a = np.random.default_rng(seed).standard_normal(17).astype(np.float32)
    (one, _), (two, _) = both(add_up, a)
    assert one == two
    small = np.arange(17, dtype=np.float32)
    assert add_up(small) == small[1:].sum()
