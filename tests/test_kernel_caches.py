"""A kernel's cache on disk is stale when a file changes that its code comes from, and never harms.

A stamp covers the kernel's file, what it imports from other kernels' files, and what these files
import in turn. Whatever is wrong with folders and files, kernels compute the same.
"""

import ast
import errno
import functools
import hashlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numba
import numpy as np
import pytest

from tinybnn.kernels.machine import cache

FOLDER = Path(cache.__file__).parents[1]
FILES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FOLDER.glob("*/*.py")
    if path.stem != "__init__"
)


@functools.cache
def imported(name):
    """The kernels' files that one of them imports from, as the parser of Python sees them."""
    result = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("tinybnn") for alias in node.names), name
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("tinybnn.kernels."):
            _, _, room, *file = node.module.split(".")
            result.update(f"{room}/{f}" for f in (file or [alias.name for alias in node.names]))
    return result


def sources(name):
    """A file, what it imports, what that imports, ..."""
    result, left = set(), [name]
    while left:
        one = left.pop()
        if one not in result:
            result.add(one)
            left.extend(imported(one))
    return result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the rooms, whose files the stamps are made of."""
    shutil.copytree(FOLDER, tmp_path / "kernels")
    monkeypatch.setattr(cache, "_KERNELS", tmp_path / "kernels")
    return tmp_path / "kernels"


def stamps(folder):
    return {name: cache._stamp(folder / f"{name}.py") for name in FILES}


@pytest.mark.parametrize("changed", FILES)
def test_a_change_reaches_the_kernels_that_are_made_of_it_and_no_others(changed, folder):
    before = stamps(folder)
    with (folder / f"{changed}.py").open("a", encoding="utf-8") as file:
        file.write("# a change\n")
    after = stamps(folder)
    stale = {name for name in FILES if before[name] != after[name]}
    assert stale == {name for name in FILES if changed in sources(name)}


def test_inlined_parts_of_other_files_are_seen():
    """The kernels of the gradients are made of words and loops of four other files."""
    words = {"training/lookup", "training/masked", "machine/selection", "machine/simd"}
    for name in ("training/input_gradient", "training/weight_gradient"):
        assert words <= sources(name)


# ------------------------------------------------------------------------------- failures of caches

compiled = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is cached")
unix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs the owners of files")
as_root = pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can act as another user"
)

SOURCE = """
from tinybnn.kernels.machine.cache import kernel


@kernel
def total(x):
    result = 0
    for i in range(len(x)):
        result += x[i]
    return result
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The file of a kernel, which is cached beside it or else in the home folder of the test."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (folder / "sums.py").write_text(SOURCE)
    return folder / "sums.py"


def run(file, monkeypatch):
    """Load the kernel again, as a new process does, and call it: (cache hits, warnings)."""
    monkeypatch.setattr(cache, "_warned", False)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec.loader.exec_module(module)
        assert module.total(np.arange(10)) == 45
        assert module.total(np.arange(10.0)) == 45
    assert all(warning.category is cache.CacheWarning for warning in caught)
    return sum(module.total.stats.cache_hits.values()), [str(w.message) for w in caught]


def kept(folder):
    return sorted(folder.glob("*.kernel")) if folder.exists() else []


def with_code(data, code):
    """A file's bytes with other code, and the checksum of that."""
    start = len(cache._MAGIC) + cache._DIGEST
    return data[:start] + hashlib.sha256(code).digest() + code


DAMAGES = {
    "empty": lambda data: b"",
    "cut in the magic string": lambda data: data[:5],
    "cut in the hashes": lambda data: data[:60],
    "without code": lambda data: data[: len(cache._MAGIC) + 2 * cache._DIGEST],
    "cut in the code": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "one byte long": lambda data: data + b"\0",
    "a changed bit": lambda data: data[:-500] + bytes([data[-500] ^ 1]) + data[-499:],
    "garbage": lambda data: np.random.default_rng(0).bytes(len(data)),
    "an index of Numba": lambda data: pickle.dumps(numba.__version__) + pickle.dumps((1, {})),
    "the pickle of something else": lambda data: with_code(data, pickle.dumps(12)),
    "a class that is gone": lambda data: with_code(data, b"cno_such_module\nKernel\n."),
    "a later protocol of pickle": lambda data: with_code(data, b"\x80\x63."),
    "no pickle": lambda data: with_code(data, b"kernel"),
}


@compiled
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_replaced(damage, file, monkeypatch):
    folder = file.parent / "__pycache__"
    assert run(file, monkeypatch) == (0, [])
    assert len(kept(folder)) == 2
    for path in kept(folder):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    hits, messages = run(file, monkeypatch)
    assert hits == 0 and len(messages) == 1  # of two damaged files
    assert str(folder) in messages[0] and "NUMBA_CACHE_DIR" in messages[0]
    assert run(file, monkeypatch) == (2, [])


@compiled
def test_files_of_other_kernels_are_replaced(file, monkeypatch):
    """A file under the name of another one is whole, but its hash of sources and types differs."""
    run(file, monkeypatch)
    one, other = kept(file.parent / "__pycache__")
    other.write_bytes(one.read_bytes())
    assert run(file, monkeypatch) == (1, [])
    assert run(file, monkeypatch) == (2, [])


@compiled
def test_a_changed_source_is_compiled_again(file, monkeypatch):
    run(file, monkeypatch)
    file.write_text(SOURCE + "# a change\n")
    assert run(file, monkeypatch) == (0, [])
    assert run(file, monkeypatch) == (2, [])
    assert len(kept(file.parent / "__pycache__")) == 2  # in the place of the stale ones


@compiled
@unix
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_not_read(kind, file, monkeypatch, tmp_path):
    run(file, monkeypatch)
    folder = file.parent / "__pycache__"
    for path in kept(folder):
        path.rename(tmp_path / path.name)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(tmp_path / path.name)
    assert run(file, monkeypatch) == (0, [])  # a folder cannot be replaced: the next place is home
    assert run(file, monkeypatch) == (2, [])


@compiled
@pytest.mark.parametrize("failing", ["mkdir", "open", "replace"])
def test_a_full_disk(failing, file, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path if failing == "mkdir" else os, failing, full)
        hits, (message,) = run(file, patch)
    assert hits == 0
    assert "No space left on device" in message and "NUMBA_CACHE_DIR" in message
    assert str(file.parent / "__pycache__") in message
    assert not list(file.parent.glob("__pycache__/sums.total*"))
    run(file, monkeypatch)
    assert run(file, monkeypatch) == (2, [])


PROGRAM = """
import os, sys
import numba, numpy as np
import tinybnn.kernels.machine.cache

limit, user = map(int, sys.argv[1:])
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
if user:
    import pwd
    numba.njit(lambda x: x + 1)(1)  # imports what the other user may not be able to read
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
from sums import total
assert total(np.arange(10)) == total(np.arange(10.0)) == 45
print(sum(total.stats.cache_hits.values()))
"""


def processes(folder, count=1, limit=0, user=0, **environment):
    """Call the kernel of a folder in new processes: (hits, what it writes to stderr) of each."""
    inherited = {k: v for k, v in os.environ.items() if "CACHE" not in k and k != "HOME"}
    path = os.pathsep.join([str(folder), str(FOLDER.parents[1])])
    environment = inherited | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | environment
    command = [sys.executable, "-c", PROGRAM, str(limit), str(user)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [
        subprocess.Popen(command, text=True, env=environment, cwd=folder, **pipes)
        for _ in range(count)
    ]
    result = []
    for process in started:
        out, messages = process.communicate(timeout=100)
        assert process.returncode == 0, messages
        result.append((int(out), messages))
    return result


@compiled
@unix
def test_a_write_that_fails_half_way_leaves_nothing(file):
    """Files may have 1000 bytes here: some are written before the system refuses."""
    caches = file.parent / "caches"
    (result,) = processes(file.parent, limit=1000, NUMBA_CACHE_DIR=str(caches))
    assert result[0] == 0 and result[1].count("CacheWarning") == 1, result
    assert not [path for path in caches.rglob("*") if path.is_file()]


@compiled
def test_processes_that_compile_at_once(file):
    for hits, messages in processes(file.parent, count=2):
        assert 0 <= hits <= 2 and messages == ""
    assert processes(file.parent) == [(2, "")]
    assert len(list(file.parent.glob("__pycache__/sums.total*"))) == 2


@compiled
def test_temporary_files_of_killed_processes(file, monkeypatch):
    run(file, monkeypatch)
    old, new = (Path(f"{path}.0123.tmp") for path in kept(file.parent / "__pycache__"))
    for path in (old, new):
        path.with_suffix("").with_suffix("").unlink()
        path.touch()
    os.utime(old, (time.time() - 1e5,) * 2)
    run(file, monkeypatch)
    assert not old.exists() and new.exists()


# ------------------------------------------------------------------------------------------- trust


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@compiled
@unix
@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.parametrize("why", ["owner", "everybody", "group"])
def test_what_others_can_write_to_is_not_loaded(what, why, file, monkeypatch, tmp_path):
    run(file, monkeypatch)
    folder, trap = file.parent / "__pycache__", pickle.dumps(Trap(str(tmp_path / "trap")))
    for path in kept(folder):
        path.write_bytes(with_code(path.read_bytes(), trap))
    targets = [folder] if what == "folder" else kept(folder)
    if why == "owner":
        written = {os.stat(path).st_mtime_ns for path in targets}
        refuse = cache._refuse_untrusted

        def by_others(status):
            if status.st_mtime_ns in written:
                status = os.stat_result((*status[:4], 4321, *status[5:10]))
            refuse(status)

        monkeypatch.setattr(cache, "_refuse_untrusted", by_others)
    else:
        for target in targets:
            target.chmod(0o777 if why == "everybody" else 0o775)
        if why == "group":
            monkeypatch.setattr(os, "getegid", lambda: 4321)
    assert run(file, monkeypatch) == (0, [])
    assert run(file, monkeypatch) == (2, [])  # from files in their place, or from home
    assert not (tmp_path / "trap").exists()
    assert len(kept(tmp_path / "home/numba" / cache._folders(file)[1].name)) == (
        2 if what == "folder" else 0
    )


@compiled
@unix
def test_the_group_of_the_user_may_write(file, monkeypatch):
    """umask 002, and a group for each user: as many systems set up home folders."""
    run(file, monkeypatch)
    for path in [file.parent / "__pycache__", *kept(file.parent / "__pycache__")]:
        path.chmod(path.stat().st_mode | 0o020)
    assert run(file, monkeypatch) == (2, [])


@compiled
@unix
def test_files_are_for_their_owner_to_write(file, monkeypatch):
    before = os.umask(0)
    try:
        run(file, monkeypatch)
    finally:
        os.umask(before)
    folder = file.parent / "__pycache__"
    assert [path.stat().st_mode & 0o777 for path in [folder, *kept(folder)]] == [
        0o755,
        0o644,
        0o644,
    ]


@pytest.fixture
def shared():
    """A folder with a kernel that all users can read."""
    folder = Path(tempfile.mkdtemp(prefix="kernel-caches-"))
    folder.chmod(0o755)
    (folder / "sums.py").write_text(SOURCE)
    (folder / "sums.py").chmod(0o644)
    yield folder
    shutil.rmtree(folder)


def _all_can_read(path):
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


@compiled
@as_root
@pytest.mark.skipif(not _all_can_read(Path(cache.__file__)), reason="installed for one user only")
def test_another_user(shared):
    folder, user = shared, 65534
    # No home, and nothing that can be written to.
    for environment in ({}, {"HOME": "/nonexistent"}, {"HOME": "/proc"}):
        ((hits, messages),) = processes(folder, user=user, **environment)
        assert hits == 0 and messages.count("CacheWarning") == 1, messages
        assert str(folder / "__pycache__") in messages and "NUMBA_CACHE_DIR" in messages
    # A folder that the variable names is the only one.
    ((hits, messages),) = processes(folder, NUMBA_CACHE_DIR="/proc/caches")
    assert hits == 0 and messages.count("CacheWarning") == 1, messages
    assert not (folder / "__pycache__").exists()
    # What root has installed is read; what the user has written is not read by root.
    assert processes(folder) == [(0, "")]
    assert processes(folder, user=user) == [(2, "")]
    own = folder / "own"
    own.mkdir()
    os.chown(own, user, user)
    assert processes(folder, user=user, NUMBA_CACHE_DIR=str(own)) == [(0, "")]
    assert processes(folder, user=user, NUMBA_CACHE_DIR=str(own)) == [(2, "")]
    ((hits, messages),) = processes(folder, NUMBA_CACHE_DIR=str(own))
    assert hits == 0 and messages.count("CacheWarning") == 1
    assert f"belongs to the user with id {user}" in messages
    # Root leaves nothing in the folders of another user, which that user could not use any more.
    for path in (*own.rglob("*.kernel"), *own.iterdir()):
        path.unlink() if path.is_file() else path.rmdir()
    shutil.rmtree(folder / "__pycache__")
    os.chown(folder, user, user)
    ((hits, messages),) = processes(folder, HOME=str(own))
    assert hits == 0 and messages.count("CacheWarning") == 1
    assert not list(own.iterdir()) and not (folder / "__pycache__").exists()
