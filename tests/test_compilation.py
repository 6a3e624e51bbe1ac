"""While kernels are compiled a line on stderr says so; it is gone when the program goes on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinybnn.kernels.machine import compilation

PACKAGES = Path(compilation.__file__).parents[3]
terminal = pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")

SUMS = """
from tinybnn.kernels.machine.cache import kernel


@kernel
def total(x):
    result = 0
    for i in range(len(x)):
        result += x[i]
    return result


@kernel
def twice(x):
    return 2 * total(x)


@kernel
def broken(x):
    return x.no_such_attribute
"""

START = """
import contextlib, os, sys, threading
import numpy as np
from tinybnn.kernels.machine import compilation
from sums import broken, total, twice

compilation._PATIENCE, compilation._INTERVAL = 0.0, 0.05
"""

ASKED = "asked = compilation.announced()\nasked.__enter__()\n"

CALLS = """
for dtype in (np.int64, np.int32, np.float64):
    assert total(np.arange(10, dtype=dtype)) == 45
print("done", threading.active_count())
"""

LINE = r"compiling kernels \(once on this machine\)"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sums.py").write_text(SUMS)
    return tmp_path


def start(folder, program, stderr, **environment):
    path = os.pathsep.join([str(folder), str(PACKAGES)])
    inherited = {k: v for k, v in os.environ.items() if k not in ("NUMBA_DISABLE_JIT", "TERM")}
    settings = {"PYTHONPATH": path, "NUMBA_CACHE_DIR": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-c", START + program], stdout=subprocess.PIPE, stderr=stderr,
        env=inherited | settings | environment,
    )  # fmt: skip


def in_pipe(folder, program, **environment):
    """Run a program: what it writes to stdout and to stderr."""
    process = start(folder, program, subprocess.PIPE, **environment)
    out, messages = process.communicate(timeout=100)
    assert process.returncode == 0, messages
    return out.decode(), messages.decode()


def on_terminal(folder, program, columns=80, **environment):
    """Run a program whose stderr is a terminal: what it writes to stdout and to the terminal."""
    import fcntl
    import pty
    import struct
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = start(folder, program, its, **environment)
    os.close(its)
    written = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux says so at the end
            part = b""
        if not part:
            break
        written += part
    os.close(ours)
    out = process.communicate(timeout=100)[0]
    assert process.returncode == 0, written
    return out.decode(), written.decode()


def screen(written):
    """The rows that a terminal shows, without blanks at their ends."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|\r|\n|[^\r\n\x1b]+", written):
        if part == "\x1b[A":
            row -= 1
        elif part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        else:
            padded = rows[row].ljust(column)
            rows[row] = padded[:column] + part + padded[column + len(part) :]
            column += len(part)
    return [text.rstrip() for text in rows]


@terminal
def test_a_cold_cache_shows_the_line_and_a_warm_one_does_not(folder):
    out, written = on_terminal(folder, CALLS)
    assert out == "done 1\n"  # no thread is left
    counts = re.findall(rf"\r{LINE}: (\d) done, \d+ s", written)
    kernels = int(counts[-1])  # with look-ups one more, which lays filters out
    assert counts[0] == "0" and kernels in (2, 3)
    assert set(counts) == {str(n) for n in range(kernels + 1)}
    assert set(screen(written)) == {""}
    assert on_terminal(folder, CALLS) == ("done 1\n", "")


@terminal
def test_what_is_compiled_soon_is_not_announced(folder):
    assert on_terminal(folder, "compilation._PATIENCE = 1000.0\n" + CALLS) == ("done 1\n", "")


@terminal
def test_plain_python_has_nothing_to_compile(folder):
    assert on_terminal(folder, CALLS, NUMBA_DISABLE_JIT="1") == ("done 1\n", "")


BARS = """
from tqdm import tqdm
with tqdm(range(3), desc="bar", bar_format="{desc} {n_fmt}") as bar:
    for i in bar:
        total(np.arange(i, dtype=(np.int64, np.int32, np.float64)[i]))
"""


@terminal
def test_bars_of_the_program_stay_whole(folder):
    _, written = on_terminal(folder, BARS)
    assert re.search(LINE, written)
    assert screen(written) == ["bar 3", ""]


def test_a_pipe_gets_no_line_unless_progress_is_wanted(folder):
    assert in_pipe(folder, CALLS, NUMBA_CACHE_DIR=str(folder / "other")) == ("done 1\n", "")
    out, messages = in_pipe(folder, ASKED + CALLS)
    assert out == "done 1\n"
    assert re.fullmatch(rf"{LINE} \.\.\.\s+", messages)  # one, for three kernels
    assert in_pipe(folder, ASKED + CALLS) == ("done 1\n", "")


@pytest.mark.parametrize(
    "wish",
    [ASKED.replace("()", "(False)", 1), ASKED + "asked.__exit__(None, None, None)\n"],
    ids=["no progress", "over"],
)
def test_who_does_not_wish_for_progress(wish, folder):
    assert in_pipe(folder, wish + CALLS) == ("done 1\n", "")


FAILS = """
for i in range(2):
    try:
        broken(np.arange(3))
    except Exception as error:
        assert "no_such_attribute" in str(error)
assert twice(np.arange(10)) == 90
print("done", threading.active_count())
"""


@terminal
def test_a_kernel_that_cannot_be_compiled_ends_the_line_too(folder):
    out, written = on_terminal(folder, FAILS)
    assert out == "done 1\n"
    assert re.search(rf"{LINE}: 2 done", written)
    assert set(screen(written)) == {""}


FORKS = """
def compile_in_child():
    child = os.fork()
    if not child:
        total(np.arange(10.0))
        os._exit(threading.active_count() != 1)
    assert os.waitpid(child, 0)[1] == 0

compile_in_child()  # of a parent that has compiled nothing
total(np.arange(10))
compile_in_child()
"""


@terminal
def test_children_of_a_fork_announce_their_own(folder):
    _, written = on_terminal(folder, FORKS, NUMBA_CACHE_DIR="/proc/no folder")
    assert len(re.findall(rf"\r{LINE}", written)) >= 3


THREADS = """
threads = [
    threading.Thread(target=total, args=(np.arange(10, dtype=dtype),))
    for dtype in (np.int64, np.int32, np.float64, np.float32)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done", threading.active_count())
"""


@terminal
def test_threads_that_compile_at_once_share_the_line(folder):
    out, written = on_terminal(folder, THREADS)
    assert out == "done 1\n"
    assert re.search(rf"{LINE}: 3 done", written) and set(screen(written)) == {""}


CLOSED = "sys.stderr.close()\nsys.stderr = {}\n"


@pytest.mark.parametrize("replaced", ["None", "sys.stderr"])
def test_without_stderr_there_is_no_line(replaced, folder):
    assert in_pipe(folder, ASKED + CLOSED.format(replaced) + CALLS) == ("done 1\n", "")


COLLECTOR = """
import gc
gc.{}able()
total(np.arange(10))
try:
    broken(np.arange(10))
except Exception:
    pass
print(gc.isenabled())
"""


@pytest.mark.parametrize(("state", "expected"), [("en", "True\n"), ("dis", "False\n")])
def test_the_garbage_collector_is_left_as_it_was(state, expected, folder):
    assert in_pipe(folder, COLLECTOR.format(state)) == (expected, "")
