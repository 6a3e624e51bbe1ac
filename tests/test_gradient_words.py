"""Vector words that only the gradients of binary layers use, compiled and as plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn.kernels.machine.selection import (
    add_where,
    compress,
    count_ones,
    look_up,
    next_four,
    nonzero,
    or_where,
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
def choose_lanes(a, b, c, bits, out):
    store(out, 0, or_where(load(a, 0), load(b, 0), bits))
    store(out, 16, next_four(load(a, 0)))
    return count_ones(bits)


@kernel
def add_to_lanes(a, bits, out):
    store(out, 0, add_where(load(a, 0), load_splat(a, 16), bits))
    return nonzero(load(a, 0))


@given(seeds)
def test_lanes_are_chosen_by_bits(seed):
    rng = np.random.default_rng(seed)
    a, b, bits = integers(rng, 16), integers(rng, 16), rng.integers(0, 2**64, None, np.uint64)
    (ones, one), (same_ones, two) = both(choose_lanes, a, b, b, bits, np.zeros(32, np.int32))
    assert same(one, two)
    assert same(one[:16], np.where(lanes_set(bits), a | b, a))
    assert same(one[16:].view(np.uint32), a.view(np.uint32) >> np.uint32(4))
    assert ones == same_ones == int(bits).bit_count()


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
def pick(table, index, out):
    numbers = load(index, 0)
    for four in range(8):
        store(out, 16 * four, look_up(load(table, 0), numbers))
        numbers = next_four(numbers)


@pytest.mark.skipif(not cpu_features() & {"avx2", "avx512f"}, reason="needs AVX2 or AVX-512")
@given(seeds)
def test_look_up(seed):
    """Four bits after four choose an entry of a table whose second half mirrors the first."""
    rng = np.random.default_rng(seed)
    half = rng.standard_normal(8).astype(np.float32)
    table, index = np.concatenate([half, -half[::-1]]), integers(rng, 16)
    (_, one), (_, two) = both(pick, table, index, np.zeros(128, np.float32))
    assert same(one, two)
    numbers = index.view(np.uint32)[None] >> np.arange(0, 32, 4, np.uint32)[:, None] & 15
    assert same(one, table[numbers].reshape(-1))


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
