"""Memory for arrays: alignment, and reuse, but never twice at the same time."""

import gc
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn.kernels.machine import memory

LARGE = 1 << 20


@pytest.fixture(autouse=True)
def nothing_waits():
    before = memory.keep(0)
    memory.keep(before)
    yield
    memory.keep(before)


@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (70, 600), 5000, (np.int64(1000), 1001), ()])
@pytest.mark.parametrize("dtype", [np.int32, np.uint64, np.dtype("float32")])
def test_begins_with_a_cache_line(shape, dtype):
    for _ in range(5):
        array = memory.empty(shape, dtype)
        expected = np.empty(shape, dtype)
        assert array.shape == expected.shape and array.dtype == expected.dtype
        assert array.flags.c_contiguous and array.flags.writeable
        assert array.ctypes.data % 64 == 0 or array.nbytes <= 512


@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 600)])
def test_constants_on_lines(shape):
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape[::-1]).T
    for _ in range(5):
        copy = memory.aligned(array)
        assert copy.ctypes.data % 64 == 0 and copy.flags.c_contiguous and copy.flags.writeable
        assert copy.dtype == array.dtype and np.array_equal(copy, array)
        assert not np.shares_memory(copy, array)


def test_used_again_when_the_last_view_is_gone():
    first = memory.empty(LARGE, np.uint8)
    place = first.ctypes.data
    view = first[10:20].view(np.int8).reshape(2, 5).T
    del first
    assert memory.empty(LARGE, np.uint8).ctypes.data != place  # and waits now itself
    view[:] = 1
    del view
    second, third = (memory.empty(LARGE - 100, np.uint8) for _ in range(2))
    assert place in (second.ctypes.data, third.ctypes.data)
    assert second.ctypes.data != third.ctypes.data


def test_not_for_arrays_that_are_much_smaller():
    place = memory.empty(LARGE, np.uint8).ctypes.data
    assert memory.empty(LARGE // 2, np.uint8).ctypes.data != place
    assert memory.empty(int(LARGE / 1.14), np.uint8).ctypes.data == place
    assert memory.empty(LARGE + 1, np.uint8).ctypes.data != place


@given(st.integers(memory._SMALL + 1, 1 << 40))
def test_sizes(size):
    """There are four of them in each doubling, and each is one of them itself."""
    rounded = memory._rounded(size)
    assert size <= rounded <= 1.25 * size
    assert rounded == memory._rounded(rounded)
    *_, lower, upper = (1 << i for i in range(rounded.bit_length() + 1))
    assert rounded in [lower + (upper - lower) // 4 * i for i in range(5)]


def waiting():
    return sum(len(free) * size for size, free in memory._free.items())


def test_keeps_no_more_than_the_limit():
    in_use = memory._state.made
    memory.keep(5 * LARGE)
    arrays = [memory.empty(LARGE // 2 + LARGE // 8 * i, np.uint8) for i in range(9)]
    places = [array.ctypes.data for array in arrays]
    while arrays:
        arrays.pop(0)
    next_one = memory.empty(100 * LARGE, np.uint8)  # whatever is made next
    result = [buffer.address for free in memory._free.values() for buffer in free]
    assert 4 * LARGE < waiting() <= 5 * LARGE
    assert {*result} == {*places[-len(result) :]}  # what was taken longest ago goes first
    del next_one
    assert memory.keep(0) == 5 * LARGE
    assert waiting() == 0 and memory._state.made == in_use
    with pytest.raises(ValueError, match="limit must be a number of bytes >= 0, got -1"):
        memory.keep(-1)


def test_threads_never_share_memory():
    """Each thread fills arrays with its own number, and finds nothing else in them."""
    wrong = []

    def work(number):
        for _ in range(300):
            a, b = memory.empty(LARGE, np.uint8), memory.empty(LARGE, np.uint8)
            a[::4096], b[::4096] = number, number + 100
            if (a[::4096] != number).any() or (b[::4096] != number + 100).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    assert waiting() <= 12 * LARGE


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(3, 4), (64, 8, 50, 60)])
def test_empty_like(shape, order):
    x = np.zeros(shape, np.float32, order)
    for like in (x, x[:, ::-1], x.T, np.broadcast_to(x[:1], shape)):
        result, expected = memory.empty_like(like), np.empty_like(like)
        assert result.shape == expected.shape and result.dtype == expected.dtype
        assert result.flags.writeable
        if like is x or (like.base is x and like.flags.forc):
            assert result.strides == expected.strides


def test_channels_last_stays_channels_last():
    x = np.zeros((8, 30, 40, 64), np.float32).transpose(0, 3, 1, 2)
    assert memory.empty_like(x).strides == x.strides


def test_the_end_of_a_process_is_quiet():
    code = (
        "import numpy as np; from tinybnn.kernels.machine import memory; "
        "a = memory.empty(1 << 20, np.uint8); b = [a]; b.append(b)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


INTERRUPTED = """
import signal
import numpy as np
from tinybnn.kernels.machine import memory

caught, arrays, wanted, armed = 0, [], 500, False

def interrupt(number, frame):
    global armed
    if armed:  # by the next except, once
        armed = False
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
signal.setitimer(signal.ITIMER_REAL, 2e-4, 2e-4)
while caught < wanted:
    try:
        armed = True
        for i in range(10**9):
            arrays.append(memory.empty(1000 + 500 * (i % 7), np.uint8))
            arrays[-1][:] = i % 256
            if len(arrays) > 5:
                arrays.clear()
    except KeyboardInterrupt:
        caught += 1
signal.setitimer(signal.ITIMER_REAL, 0)
free = [buffer for buffers in memory._free.values() for buffer in buffers]
assert len({buffer.address for buffer in free}) == len(free)
assert not {buffer.address for buffer in free} & {array.ctypes.data for array in arrays}
arrays.clear()
memory.keep(0)
assert not any(memory._free.values())
memory.keep(1 << 30)
first = memory.empty(1000, np.uint8)
place = first.ctypes.data
del first
(buffer,) = memory._free[1024]
assert buffer.address == place == memory.empty(1000, np.uint8).ctypes.data
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_an_interruption_is_never_lost():
    """Ctrl-C while memory is taken and given back: it arrives, and the memory stays in order."""
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
