"""All kernels are compiled once, by several processes, and found by everyone who comes later."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numba
import pytest

from tinybnn.bench.warm_up import warm_up
from tinybnn.kernels.machine import cache

compiled = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
posix = pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")
COMMAND = [sys.executable, "-m", "tinybnn", "warm-up"]


def run(*command, **environment):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


STEP = """
from tinybnn import deploy
from tinybnn.bench.training import NETWORKS, Training
from tinybnn.kernels.machine import cache

for network in NETWORKS[:2]:
    step = Training(network, 8)
    step()
    deploy.compile(step.model.eval(), network.input_shape).predict(step.x)
print(cache.compilations.done)
"""


@compiled
@pytest.mark.slow
def test_afterwards_nothing_is_compiled():
    """In the cache of the tests, which holds most of the kernels."""
    first = run(*COMMAND, "--processes", "2", "--quiet")
    assert first.startswith(("Compiled ", "Nothing to do: all "))
    start = time.perf_counter()
    again = json.loads(run(*COMMAND, "--json", "-"))
    assert again["compiled"] == 0 and again["kernels"] > 30
    assert time.perf_counter() - start < 30
    assert run(sys.executable, "-c", STEP) == "0\n"


@compiled
@posix
def test_an_interruption_leaves_whole_kernels(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "--processes", "2"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        # A shell's background jobs ignore SIGINT; processes that it starts are told too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), start_new_session=True,
    )  # fmt: skip
    while not (found := list(tmp_path.rglob("*.kernel"))) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in messages
    assert messages.endswith("tinybnn: interrupted\n")
    for path in found:
        data = path.read_bytes()[len(cache._MAGIC) + cache._DIGEST :]
        assert hashlib.sha256(data[cache._DIGEST :]).digest() == data[: cache._DIGEST]
    code = "from tinybnn.kernels.machine import cache; print(cache.noted())"
    assert run(sys.executable, "-c", code, NUMBA_CACHE_DIR=str(tmp_path)) == "None\n"


def test_where_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(ValueError, match="NUMBA_DISABLE_JIT is set"):
        warm_up()


def test_without_a_folder_to_write_to(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 0)
    monkeypatch.setattr(numba.config, "CACHE_DIR", os.devnull)
    with pytest.raises(
        ValueError, match="no folder can store compiled kernels; set NUMBA_CACHE_DIR"
    ):
        warm_up()


# -------------------------------------------------------------------------------------- the note


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A file that is noted."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    path = tmp_path / "a.kernel"
    path.touch()
    assert cache.noted() is None
    assert cache.note([str(path)]) and cache.noted() == [str(path)]
    return path


def test_a_file_that_is_gone_is_noticed(kernel):
    kernel.unlink()
    assert cache.noted() is None


def test_another_version_is_noticed(kernel, monkeypatch):
    monkeypatch.setattr(cache, "_version", lambda: "another")
    assert cache.noted() is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "[[], 2]", "7", "[null, null]"])
def test_a_damaged_note_says_nothing(kernel, text):
    (note,) = kernel.parent.rglob(cache._NOTE)
    note.write_text(text)
    assert cache.noted() is None
    note.write_bytes(b"\xff\xfe")
    assert cache.noted() is None


def test_the_version_is_of_all_sources_and_the_cpu(tmp_path, monkeypatch):
    before = cache._version()
    assert before == cache._version()
    monkeypatch.setattr(cache, "_KERNELS", tmp_path / "kernels")
    assert before != cache._version()
