"""Threads: the same bits from any number of them, and no way to end the process.

Numba's threading layers differ in what they do not survive, so the programs below run in processes
of their own, once on each layer that is installed, with four threads on any machine.
"""

import ast
import functools
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from unittest.mock import Mock

import numba
import numpy as np
import pytest
import threadpoolctl

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.simd import kernel

KERNELS = Path(threads.__file__).parents[1]
LAYERS = ("workqueue", "omp", "tbb")

compiled = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing to run in parallel")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def run(program, layer, timeout=300):
    """Run a program in a process whose kernels use four threads of a threading layer."""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "4"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@functools.cache
def is_installed(layer):
    return run("import numba; numba.get_num_threads()", layer).returncode == 0


def check(program, layer):
    """The program ends without being killed and without an error."""
    if layer != "workqueue" and not is_installed(layer):
        pytest.skip(f"Numba finds no {layer} here")
    finished = run(HEAD + textwrap.dedent(program), layer)
    assert finished.returncode == 0, f"{finished.returncode}\n{finished.stdout}{finished.stderr}"
    assert finished.stdout.splitlines()[-1:] == ["done"], finished.stdout + finished.stderr


HEAD = """
import os, signal, threading, time, traceback
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import numpy as np

from tinybnn import deploy, models
from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.simd import kernel

LAYER = os.environ["NUMBA_THREADING_LAYER"]
entries, run = 0, threads.run

def counting(function):
    def counted(*arguments):
        global entries
        entries += 1
        return function(*arguments)
    return counted

threads.run = counting(run)

def compile_model(build, shape, images, **settings):
    rng = np.random.default_rng(0)
    model = build(shape, rng=rng, **settings).eval()
    packed = deploy.compile(model, shape)
    return packed, rng.standard_normal((images, *shape), np.float32)

def small():
    return compile_model(models.cnn, (1, 8, 8), 5, padding=1)

def large():
    return compile_model(models.vgg_small, (3, 32, 32), 40)

def on_one_thread(packed, x):
    before = entries
    with threads.num_threads(1):
        result = packed.predict(x)
    assert entries == before, "one thread entered a parallel kernel"
    return result

def in_parallel(packed, x):
    before = entries
    result = packed.predict(x)
    assert entries > before, "no parallel kernel was entered"
    return result
"""

TAKE_TURNS = """
import sys

sys.setswitchinterval(1e-6)  # between any two steps of Python code, about
for make, rounds in ((small, 200), (large, 3)):
    packed, x = make()
    # An input for each thread: nobody may find the right bits in the memory of another.
    inputs = [np.roll(x, i, axis=-1) * np.float32(1 + i) for i in range(8)]
    expected = [on_one_thread(packed, x) for x in inputs]
    assert len({result.tobytes() for result in expected}) == 8
    if make is large:
        assert np.array_equal(in_parallel(packed, x), expected[0])
    start = threading.Barrier(8)

    def work(i):
        for _ in range(rounds):
            start.wait(60)
            assert np.array_equal(packed.predict(inputs[i]), expected[i])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
assert threads.layer() == LAYER
print("done")
"""


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("layer", LAYERS)
def test_python_threads_take_turns(layer):
    """Eight threads predict with one model at once."""
    check(TAKE_TURNS, layer)


FORK = """
import multiprocessing

def in_child(function, *arguments):
    # A child that hangs is ended by its alarm; pytest's own time limit would not say which.
    child = os.fork()
    if child == 0:
        signal.alarm(150)
        try:
            function(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"{function.__name__} in a child: status {status}"

def fresh():
    assert threads.count() == 4
    packed, x = large()
    assert np.array_equal(in_parallel(packed, x), on_one_thread(packed, x))

def forked(generations=2):
    assert threads.count() == (1 if LAYER == "omp" else 4)
    for _ in range(3):
        assert np.array_equal(packed.predict(x), expected)
    with threads.num_threads(3):
        assert threads.count() == (1 if LAYER == "omp" else 3)
        assert np.array_equal(packed.predict(x), expected)
    # Work that was shared out among threads before the fork.
    assert doubled() == [0, 2, 4]
    if generations > 1:
        in_child(forked, generations - 1)

@kernel(allocates=False)
def times(first, end, task, x, factor):
    for i in range(first, end):
        x[i] *= factor

def doubled():
    x = np.arange(3.0)
    parallel.share_out(times, parallel.shares(3, 3), x, 2)
    return x.tolist()

def of_pool(part):
    return packed.predict(part)

# Small work starts no threads, so the children of this process can start their own.
packed, x = small()
packed.predict(x)
assert threads.layer() is None and threads.count() == 4
in_child(fresh)

packed, x = large()
expected = on_one_thread(packed, x)
assert np.array_equal(in_parallel(packed, x), expected)
assert doubled() == [0, 2, 4]
in_child(forked)

# A thread that does not exist in the child holds the lock.
held, leave = threading.Event(), threading.Event()

def hold():
    with threads._lock:
        held.set()
        leave.wait(100)

holder = threading.Thread(target=hold)
holder.start()
held.wait(100)
in_child(forked)
leave.set()
holder.join()

# The forking thread itself holds it.
with threads._lock:
    in_child(forked)

with multiprocessing.get_context("fork").Pool(2) as pool:
    parts = pool.map_async(of_pool, [x[:4], x[4:], x]).get(150)
assert np.array_equal(np.concatenate(parts[:2]), expected)
assert np.array_equal(parts[2], expected)
assert np.array_equal(in_parallel(packed, x), expected)
print("done")
"""


@pytest.mark.slow
@compiled
@forks
@pytest.mark.parametrize("layer", LAYERS)
def test_a_forked_child_predicts(layer):
    """Before and after its parent ran parallel kernels; and a child of the child."""
    check(FORK, layer)


INTERRUPT = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
packed, x = large()
expected = on_one_thread(packed, x)
assert np.array_equal(in_parallel(packed, x), expected)
for delay in (0.01, 0.02, 0.03, 0.05, 0.08):
    deadline = time.monotonic() + 60
    try:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
        while time.monotonic() < deadline:
            packed.predict(x)
        raise SystemExit("no interruption came")
    except KeyboardInterrupt:
        pass
    # The lock is free, for other threads too.
    with ThreadPoolExecutor(1) as pool:
        assert np.array_equal(pool.submit(in_parallel, packed, x).result(60), expected)
    assert np.array_equal(in_parallel(packed, x), expected)
print("done")
"""


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("layer", LAYERS)
def test_an_interruption_leaves_the_lock_free(layer):
    check(INTERRUPT, layer)


# ------------------------------------------------------------------------------- in this process


def is_free():
    """Whether another thread than this one gets the lock."""
    result = []

    def ask():
        result.append(threads._lock.acquire(blocking=False))
        if result[0]:
            threads._lock.release()

    other = threading.Thread(target=ask)
    other.start()
    other.join()
    return result[0]


def test_a_parallel_loop_runs_under_the_lock(monkeypatch):
    seen, loop = [], threads._loop()

    def counted(*arguments):
        seen.append(is_free())
        loop(*arguments)

    monkeypatch.setattr(threads, "_loop", lambda: counted)
    x = np.zeros(4)
    with threads._lock, threads.num_threads(threads.most()):  # the lock is re-entrant
        parallel.share_out(add_one, parallel.shares(4, 4), x)
    assert x.tolist() == [1, 1, 1, 1]
    if threads.most() > 1 and not numba.config.DISABLE_JIT:
        assert seen == [False]
    monkeypatch.setattr(threads, "_loop", lambda: {}.__getitem__)
    with pytest.raises(TypeError):
        threads.run(0, 0, 0, 0, 0)
    assert is_free()


@kernel(allocates=False)
def add_one(first, end, task, x):
    for i in range(first, end):
        x[i] += 1


@pytest.mark.parametrize("start", ["with threads.num_threads(1): pass", "threads._loop()"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_go_to_sleep_unless_the_user_says_otherwise(start, given, expected):
    """And the environment, which other processes inherit, stays as it was."""
    code = (
        "import os; before = {**os.environ}; from tinybnn.kernels.machine import threads\n"
        f"{start}\nassert {{**os.environ}} == before; print(threads.layer())"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in names} | given
    environment["OMP_DISPLAY_ENV"] = "verbose"  # GNU OpenMP prints what it has read
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    if done.stdout.strip() == "omp" and "GOMP_SPINCOUNT" in done.stderr and expected:
        assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr


def test_one_blas_thread():
    def numbers():
        pools = threadpoolctl.threadpool_info()
        return [pool["num_threads"] for pool in pools if pool["user_api"] == "blas"]

    before = numbers()
    assert before  # NumPy's
    with pytest.raises(KeyError), threads.one_blas_thread():
        assert set(numbers()) == {1}
        raise KeyError
    assert numbers() == before


def test_num_threads_counts_for_this_thread_only():
    most = threads.most()
    inside, leave, result = threading.Event(), threading.Event(), []

    def other():
        result.append(threads.count())
        with threads.num_threads(most):
            inside.set()
            leave.wait(10)
            result.append(threads.count())

    with threads.num_threads(1):
        assert threads.count() == 1
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
        assert threads.count() == 1
        with threads.num_threads(most), threads.num_threads(None):
            assert threads.count() == most
        with pytest.raises(KeyError), threads.num_threads(most):
            raise KeyError
        assert threads.count() == 1
        leave.set()
        thread.join()
    assert result == [most, most]
    with threads.num_threads(None):
        assert threads.count() == most


@pytest.mark.parametrize("n", [0, -1, 1.5, "1", 10**6])
def test_num_threads_refuses(n):
    before = threads.count()
    with (
        pytest.raises(ValueError, match=rf"num_threads: n must be from 1 to \d+, got {n!r}"),
        threads.num_threads(n),
    ):
        pass
    assert threads.count() == before


@pytest.mark.parametrize(
    ("layer", "seconds", "most", "expected"),
    [
        ("omp", 0, 8, 1),
        ("omp", 19e-6, 8, 1),
        ("omp", 21e-6, 8, 2),
        ("omp", 1, 8, 8),
        ("tbb", 39e-6, 8, 1),
        ("workqueue", 0.9e-3, 8, 1),
        ("workqueue", 1.6e-3, 8, 3),
        ("workqueue", 1, 1, 1),
    ],
)
def test_tasks_for(monkeypatch, layer, seconds, most, expected):
    """A thread gets work for longer than its start takes, which depends on the threading layer."""
    monkeypatch.setattr(numba, "threading_layer", lambda: layer)
    monkeypatch.setattr(threads, "count", lambda: most)
    assert threads.tasks_for(seconds) == expected


def test_tasks_for_before_the_threads_start(monkeypatch):
    monkeypatch.setattr(numba, "threading_layer", Mock(side_effect=ValueError))
    monkeypatch.setattr(threads, "count", lambda: 4)
    assert [threads.tasks_for(s * 1e-6) for s in (19, 21, 50)] == [1, 2, 4]


def test_tasks_for_knows_the_layer():
    numba.get_num_threads()  # starts it
    assert numba.threading_layer() in threads._WORTH_A_THREAD


# ------------------------------------------------------------------------ every loop takes the lock

TREES = {
    path.relative_to(KERNELS).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(KERNELS.rglob("*.py"))
}


@pytest.mark.parametrize("file", TREES)
def test_no_kernel_has_a_parallel_loop_of_its_own(file):
    """`threads.run` holds the lock; Numba's own loops would not."""
    nodes = list(ast.walk(TREES[file]))
    names = {getattr(node, "attr", getattr(node, "id", "")) for node in nodes}
    given = {node.arg for node in nodes if isinstance(node, ast.keyword)}
    assert "prange" not in names and "parallel" not in given


@pytest.mark.parametrize("file", sorted(TREES.keys() - {"machine/threads.py"}))
def test_only_one_file_asks_numba_for_threads(file):
    """`threads.count` knows when a process cannot start any."""
    names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(TREES[file])}
    assert not names & {"get_num_threads", "set_num_threads"}


def test_items_that_are_left_out_or_done_twice():
    if threads.most() < 2:
        pytest.skip("needs two threads")
    done, counts = [], []

    def work(item):
        counts.append(threads.count())
        done.append(item)

    with threads.num_threads(2):
        threads.on_threads(work, range(100))
        threads.on_threads(work, [])
        assert threads.count() == 2
    assert sorted(done) == [*range(100)] and set(counts) == {1}
