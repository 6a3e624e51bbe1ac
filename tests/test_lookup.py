"""The product of floats with signs by lookup tables, part by part and as a whole."""

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinybnn.kernels.machine import simd
from tinybnn.kernels.signs import bits
from tinybnn.kernels.training import lookup
from tinybnn.kernels.training.lookup import LANES, PATTERNS, POWERS, STEP, STEP_FLOATS

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(1, 40 if numba.config.DISABLE_JIT else 140)
needs_look_up = pytest.mark.skipif(
    not simd.cpu_features() & {"avx2", "avx512f"}, reason="look_up needs AVX2 or AVX-512"
)


def by_tables(grad, signs, before=None):
    """``grad @ signs`` by the kernels; added to ``before``, whose columns are whole panels."""
    (rows, length), columns = grad.shape, signs.shape[1]
    words = bits.pack_reference(signs)  # (K, words)
    steps, panels = -(-length // STEP), -(-columns // LANES)
    size = steps * STEP_FLOATS
    tables = np.full(rows * size, np.nan, np.float32)
    for row in range(rows):
        lookup.make_tables(
            grad.reshape(-1), row * length, length, 1, PATTERNS, tables, row * size, size
        )
    column = np.arange(0, columns, 16)
    starts = np.minimum(np.arange(steps * STEP), length - 1) * words.shape[1]
    turned = np.zeros(panels * steps * LANES, np.int32)
    shifts = (column % 64).astype(np.uint64)
    places = column // LANES * steps * LANES + column % LANES
    turning = lookup.Turning(starts, column // 64, shifts, places, 1, LANES, 0)
    lookup.turn(0, steps, 0, words.reshape(-1), turning, POWERS, turned)
    out = np.full((rows + 1, columns), 7, np.float32)  # the last row is not of the product
    if before is not None:
        out[:rows] = before
    places = np.stack([np.arange(rows) * size, np.arange(rows) * columns], 1).reshape(-1)
    lookup.product(
        lookup.Rows(places, 0, rows),
        lookup.Tables(tables, np.arange(steps) * STEP_FLOATS, 0, steps),
        lookup.Signs(turned, 0, steps * LANES),
        lookup.Sums(out.reshape(-1), columns, np.bool_(before is not None)),
    )
    assert np.all(out[rows] == 7)
    return out[:rows]


@needs_look_up
@given(seeds, st.integers(1, 9), lengths, lengths)
@example(0, 5, 33, 130)
@example(0, 4, 64, 128)
def test_product(seed, rows, length, columns):
    """Real gradients, since the reference adds in the same order."""
    rng = np.random.default_rng(seed)
    grad = rng.standard_normal((rows, length)).astype(np.float32)
    signs = rng.choice([-1, 1], (length, columns))
    assert np.array_equal(by_tables(grad, signs), lookup.product_reference(grad, signs))


@needs_look_up
@given(seeds, st.integers(1, 5), lengths, st.sampled_from([LANES, 2 * LANES]))
def test_product_is_added(seed, rows, length, columns):
    rng = np.random.default_rng(seed)
    grad = rng.integers(-9, 10, (rows, length)).astype(np.float32)
    signs = rng.choice([-1, 1], (length, columns))
    before = rng.integers(-9, 10, (rows, columns)).astype(np.float32)
    assert np.array_equal(by_tables(grad, signs, before), before + grad @ signs)


@given(seeds, st.integers(0, 4), lengths, lengths)
def test_reference(seed, rows, length, columns):
    rng = np.random.default_rng(seed)
    grad = rng.integers(-9, 10, (rows, length)).astype(np.float32)
    signs = rng.choice([-1, 1], (length, columns))
    found = lookup.product_reference(grad, signs)
    assert found.dtype == np.float32 and np.array_equal(found, grad @ signs)


@given(seeds, st.integers(0, 12), st.integers(1, 3))
def test_tables(seed, count, step):
    """All sums of four, of gradients that lie apart; those that are not there are zeros."""
    rng = np.random.default_rng(seed)
    grad = rng.standard_normal(2 + 12 * step).astype(np.float32)
    tables = np.full(2 + 3 * 16 + 2, 7, np.float32)
    lookup.make_tables(grad, 2, count, step, PATTERNS, tables, 2, 3 * 16)
    g = np.zeros(12, np.float32)
    g[:count] = grad[2 : 2 + count * step : step]
    for number in range(16):
        p0, p1, p2, p3 = (np.float32(1 if number >> j & 1 else -1) for j in range(4))
        expected = (p0 * g[::4] + p1 * g[1::4]) + (p2 * g[2::4] + p3 * g[3::4])
        assert np.array_equal(tables[2 + number : 50 : 16], expected)
    assert np.all(tables[:2] == 7) and np.all(tables[50:] == 7)


@given(seeds)
def test_turned_signs(seed):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**64, 50, np.uint64)
    starts, sources = rng.integers(0, 40, 3 * STEP), rng.integers(0, 10, 2)
    shifts, places = rng.integers(0, 49, 2).astype(np.uint64), np.array([0, 16])
    turned = np.zeros(200, np.int32)
    turning = lookup.Turning(starts, sources, shifts, places, 2, 100, 40)
    lookup.turn(0, 3, 0, words, turning, POWERS, turned)
    expected = np.zeros(200, np.uint32)
    for group, at in enumerate((0, 40, 100)):
        for source in range(2):
            for row in range(STEP):
                word = words[starts[group * STEP + row] + sources[source]] >> shifts[source]
                sign = (word >> np.arange(16, dtype=np.uint64) & np.uint64(1)).astype(np.uint32)
                expected[at + places[source] :][:16] |= sign << np.uint32(row)
    assert np.array_equal(turned.view(np.uint32), expected)
