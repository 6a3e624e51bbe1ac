"""Tiles: the same compiled and as plain Python, in every width, and nothing behind them written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn.kernels.machine import tiles
from tinybnn.kernels.machine.simd import (
    add_first,
    all_ones,
    interleave,
    kernel,
    load_like,
    splat_like,
    store,
    zero_counts,
    zeros,
)

seeds = st.integers(0, 2**32 - 1)


def both(function, *arguments):
    """What a kernel wrote to its last argument, compiled and as plain Python."""
    results = []
    for call in (function, getattr(function, "py_func", function)):
        copies = [array.copy() if isinstance(array, np.ndarray) else array for array in arguments]
        call(*copies)
        results.append(copies[-1])
    assert results[0].tobytes() == results[1].tobytes()
    return results[0]


def products(zero, combine):
    @kernel
    def run(source, table, weights, steps, count, out):
        places = tiles.six_entries(table, 1, 4, 3)
        tile, targets = tiles.six(zero(32)), tiles.six_entries(table, 1, 4, 100)
        for k in range(steps):
            tile = combine(tile, places, source, k, load_like(weights, 32 * k, tile[0]))
        tile = tiles.add_stored(tile, targets, out)
        tiles.store_tile(tile, targets, out, count)

    return run


COMBINE = {
    "dense": products(zeros, tiles.add_products),
    "by lane": products(zeros, tiles.add_lane_products),
}


@pytest.mark.parametrize("name", COMBINE)
@given(seeds, st.integers(0, 5), st.sampled_from([-1, 0, 1, 31, 32, 100]))
def test_products_of_a_tile(name, seed, steps, count):
    """Six rows, the last three are the same; rounded in the order of the steps."""
    rng = np.random.default_rng(seed)
    source, weights, before = (rng.standard_normal(n).astype(np.float32) for n in (210, 160, 300))
    table = np.array([0, 0, 40, 120, 160])  # rows that do not overlap
    out = both(COMBINE[name], source, table, weights, steps, count, before)
    expected, stored = before.copy(), min(max(count, 0), 32)
    for place in table[1:]:
        row = np.zeros(32, np.float32)
        for k in range(steps):
            x = source[3 + place + k :][: 1 if name == "dense" else 32]
            row = row + x * weights[32 * k : 32 * k + 32]
        row += before[100 + place : 132 + place]
        expected[100 + place : 100 + place + stored] = row[:stored]
    assert np.array_equal(out, expected)


@kernel
def fused(source, out):
    tile = tiles.fuse_products((zeros(16),), (2,), source, 1, load_like(source, 0, zeros(16)))
    tiles.store_tile(tiles.fuse_lane_products(tile, (0,), source, 0, tile[0]), (0,), out, 16)


def test_fused_products_of_small_integers():
    source = np.arange(20, dtype=np.float32)
    once = 3 * source[:16]
    assert np.array_equal(both(fused, source, np.zeros(16, np.float32)), once + source[:16] * once)


@kernel
def of_any_width(words, numbers, counts, count, out):
    x = load_like(words, 0, zero_counts(32))
    store(counts, 0, interleave(x ^ all_ones(x)))
    add_first(out, 3, splat_like(numbers[0], zeros(64)), count)


@given(seeds, st.integers(-2, 70))
def test_vectors_of_any_width(seed, count):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**31, 32, np.uint64)
    counts, out = np.zeros(32, np.int32), np.zeros(80, np.float32)
    result = both(of_any_width, words, np.full(1, 2, np.float32), counts, count, out)
    assert np.array_equal(result, 2 * ((np.arange(80) >= 3) & (np.arange(80) < min(count, 64) + 3)))
    of_any_width(words, np.ones(1, np.float32), counts, count, out)
    lanes = ~words.astype(np.int32).reshape(2, 2, 8)
    assert np.array_equal(counts, lanes.transpose(0, 2, 1).reshape(-1))


@kernel
def turn(source, out):
    z = zeros(4)
    rows = load_like(source, 0, z), load_like(source, 4, z)
    more = load_like(source, 8, z), load_like(source, 12, z)
    tile = tiles.transposed((rows[0], rows[1], more[0], more[1]))
    tiles.store_tile(tile, (0, 4, 8, 12), out, 4)


def test_rows_become_columns():
    source = np.arange(16, dtype=np.float32)
    turned = both(turn, source, np.zeros(16, np.float32))
    assert np.array_equal(turned.reshape(4, 4), source.reshape(4, 4).T)
