"""The product of floats with signs by lookup tables, part by part and as a whole."""

import numba
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tinybnn.kernels.machine.simd import FLOATS, kernel
from tinybnn.kernels.signs import bits
from tinybnn.kernels.training import lookup
from tinybnn.kernels.training.lookup import CHUNK, PANEL, STEPS, TABLE

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(1, 40 if numba.config.DISABLE_JIT else 140)


@kernel
def product(grad, places, length, vectors, tables, numbers, sums, columns, out, targets):
    """16 rows: laid side by side, looked up, and laid one after the other again."""
    panels = (columns + PANEL - 1) // PANEL
    for chunk in range(0, length, CHUNK):
        count = min(CHUNK, length - chunk)
        lookup.transpose_rows(grad, places, 0, chunk, count, vectors, 0)
        steps = lookup.make_tables(vectors, 0, FLOATS, count, tables, 0)
        signs = chunk // CHUNK * panels * STEPS * PANEL // 4
        lookup.add_looked_up(tables, 0, steps, numbers, signs, sums, 0, columns)
    lookup.transpose_back(sums, 0, columns, out, targets, 0, 0)


def by_tables(grad, signs, before=0):
    """``before + grad @ signs`` by the parts of the kernels, at most 16 rows."""
    (rows, length), columns = grad.shape, signs.shape[1]
    words = bits.pack_reference(signs)  # (K, words)
    starts = np.arange(length) * words.shape[1]
    layout = lookup.sign_layout(starts, np.array([0]), columns)
    numbers = lookup.sign_indices(layout, words.reshape(-1), 1)
    vectors, tables = (
        np.full(CHUNK * FLOATS, np.nan, np.float32),
        np.zeros(STEPS * TABLE, np.float32),
    )
    sums = np.full((columns + PANEL) * FLOATS, before, np.float32)
    out = np.full((rows + 1, columns), 7, np.float32)  # the last row is not of the product
    lanes = np.arange(FLOATS)
    places, targets = (np.where(lanes < rows, lanes * n, -1) for n in (length, columns))
    grad = np.append(grad, np.zeros(3, np.float32))  # gradients are loaded by fours
    product(grad, places, length, vectors, tables, numbers, sums, columns, out.reshape(-1), targets)
    assert np.all(out[rows] == 7)
    return out[:rows]


@given(seeds, st.integers(1, 16), lengths, lengths)
@example(0, 5, 33, 130)
@example(0, 16, 64, 128)
def test_product(seed, rows, length, columns):
    """Real gradients, since the reference adds in the same order."""
    rng = np.random.default_rng(seed)
    grad = rng.standard_normal((rows, length)).astype(np.float32)
    signs = rng.choice([-1, 1], (length, columns))
    assert np.array_equal(by_tables(grad, signs), lookup.product_reference(grad, signs))


@given(seeds, st.integers(1, 5), lengths, lengths)
def test_product_is_added(seed, rows, length, columns):
    rng = np.random.default_rng(seed)
    grad = rng.integers(-9, 10, (rows, length)).astype(np.float32)
    signs = rng.choice([-1, 1], (length, columns))
    assert np.array_equal(by_tables(grad, signs, 5), 5 + grad @ signs)


@given(seeds, st.integers(0, 4), lengths, lengths)
def test_reference(seed, rows, length, columns):
    rng = np.random.default_rng(seed)
    grad = rng.integers(-9, 10, (rows, length)).astype(np.float32)
    signs = rng.choice([-1, 1], (length, columns))
    result = lookup.product_reference(grad, signs)
    assert result.dtype == np.float32 and np.array_equal(result, grad @ signs)


@given(seeds, st.integers(0, 12), st.integers(1, 3))
def test_tables(seed, count, step):
    """All sums of four, of gradients that lie apart; those that are not there are zeros."""
    rng = np.random.default_rng(seed)
    grad = rng.standard_normal((13, step, FLOATS)).astype(np.float32)
    tables = np.full(2 + 3 * TABLE, 7, np.float32)
    steps = lookup.make_tables(grad.reshape(-1), 0, step * FLOATS, count, tables, 2)
    assert steps == -(-count // 4)
    g = np.zeros((12, FLOATS), np.float32)
    g[:count] = grad[:count, 0]
    entries = tables[2:].reshape(3, 16, FLOATS)
    for number in range(16):
        p0, p1, p2, p3 = (np.float32(1 if number >> j & 1 else -1) for j in range(4))
        expected = (p0 * g[::4] + p1 * g[1::4]) + (p2 * g[2::4] + p3 * g[3::4])
        assert np.array_equal(entries[:steps, number], expected[:steps])
    assert np.all(tables[:2] == 7) and np.all(entries[steps:] == 7)


@given(seeds, st.integers(1, 3 * CHUNK), st.integers(1, 70))
def test_turned_signs(seed, rows, channels):
    """Two taps; the last row is repeated up to a multiple of four."""
    rng, width = np.random.default_rng(seed), bits.words_for(channels)
    words = rng.integers(0, 2**64, 50, np.uint64)
    starts, taps = rng.integers(0, 40, rows), rng.integers(0, 10 - width, 2)
    layout = lookup.sign_layout(starts, taps, channels)
    numbers = lookup.sign_indices(layout, words, 1).view(np.uint8)
    numbers = numbers.reshape(-1, 2, -(-channels // PANEL), STEPS, PANEL)
    for row, tap, channel in rng.integers(0, (-(-rows // 4), 2, channels), (20, 3)):
        at = starts[np.minimum(4 * row + np.arange(4), rows - 1)] + taps[tap] + channel // 64
        signs = words[at] >> np.uint64(channel % 64) & np.uint64(1)
        result = numbers[row // STEPS, tap, channel // PANEL, row % STEPS, channel % PANEL]
        assert result == 16 * (signs @ np.array([1, 2, 4, 8], np.uint64))


@given(seeds, st.integers(1, 20), st.integers(0, 3))
def test_rows_side_by_side_and_back(seed, length, offset):
    """Rows with a negative place are zeros, and are not written to.

    In the last four floats of a vector, those past the length may be anything.
    """
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((FLOATS, 30)).astype(np.float32)
    is_there = rng.random(FLOATS) < rng.choice([0.5, 0.9, 1])
    places = np.where(is_there, np.arange(FLOATS) * 30, -1)
    vectors, fours = np.full(8 + 20 * FLOATS, 7, np.float32), -(-length // 4) * 4
    sums, out = vectors.copy(), np.full_like(rows, 7)
    sums[8:] = np.arange(20 * FLOATS)
    move(rows.reshape(-1), places, offset, length, vectors, sums, out.reshape(-1))
    expected = np.where(is_there[:, None], rows[:, offset : offset + length], 0)
    assert np.array_equal(vectors[8 : 8 + length * FLOATS].reshape(-1, FLOATS), expected.T)
    assert np.all(vectors[:8] == 7) and np.all(vectors[8 + fours * FLOATS :] == 7)
    expected = np.full_like(rows, 7)
    expected[is_there, offset : offset + length] = sums[8:].reshape(20, FLOATS).T[is_there, :length]
    assert np.array_equal(out, expected)


@kernel
def move(rows, places, offset, length, vectors, sums, out):
    lookup.transpose_rows(rows, places, 0, offset, length, vectors, 8)
    lookup.transpose_back(sums, 8, length, out, places, 0, offset)
