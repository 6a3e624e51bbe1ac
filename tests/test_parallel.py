"""The parallel loop calls kernels by address, with arguments of any kind."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.simd import kernel


class Pair(NamedTuple):
    factor: float
    row: np.ndarray


@kernel(allocates=False)
def work(first, end, task, nested, pair, flag, out, tasks):
    for i in range(first, end):
        out[i] = nested[0][1][i] * pair.factor + pair.row[i] + (1 if flag else 0)
        tasks[i] = task


@given(st.integers(0, 50), st.integers(1, 5), st.integers(1, 8))
def test_shares_cover_all_items_once(items, tasks, unit):
    shares = parallel.shares(items, tasks, unit)
    assert shares.shape == (tasks, 2)
    assert shares[0, 0] == 0
    assert shares[-1, 1] == items
    assert np.array_equal(shares[1:, 0], shares[:-1, 1])
    assert np.all(shares[:, 0] <= shares[:, 1])
    assert np.all(shares[1:, 0] % unit == 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_all_kinds_of_arguments_arrive(tasks, dtype):
    x, row = np.arange(100, dtype=dtype), np.ones(100, dtype)
    out, by = np.zeros(100, dtype), np.zeros(100, np.int64)
    shares = parallel.shares(100, tasks)
    for flag in (True, False):
        with threads.num_threads(threads.most()):
            parallel.share_out(work, shares, ((row, x), (row,)), Pair(2.0, row), flag, out, by)
        assert np.array_equal(out, 2 * x + 1 + flag)
        assert np.array_equal(by, np.repeat(np.arange(tasks), shares[:, 1] - shares[:, 0]))


def test_arrays_that_cannot_be_written_are_read():
    row = np.ones(8)
    row.flags.writeable = False
    out, by = np.zeros(8), np.zeros(8, np.int64)
    parallel.share_out(
        work, parallel.shares(8, 2), ((row, row), (row,)), Pair(2.0, row), False, out, by
    )
    assert np.array_equal(out, np.full(8, 3.0))


@pytest.mark.parametrize("count", [1, threads.most()])
@pytest.mark.parametrize("tasks", [1, 3])
def test_what_is_bound_reads_new_values_in_the_same_arrays(tasks, count):
    """Also after the first calls, when it goes by address with nothing to share out."""
    row, out, by = np.ones(100), np.zeros(100), np.zeros(100, np.int64)
    shares = parallel.shares(100, tasks)
    with threads.num_threads(count):
        call = parallel.bind(work, shares, ((row, row), (row,)), Pair(2.0, row), True, out, by)
        for value in range(2 * parallel._CALLS_FROM_PYTHON):
            row[:], by[:] = value, -1
            call()
            assert np.array_equal(out, np.full(100, 3.0 * value + 1))
            assert np.array_equal(by, np.repeat(np.arange(tasks), shares[:, 1] - shares[:, 0]))
