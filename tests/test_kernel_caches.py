"""A kernel's cache on disk is stale when a file changes that its code comes from, and never harms.

A stamp covers the kernel's file, what it imports from the folder of kernels, and what these files
import in turn. Whatever is wrong with folders and files, kernels compute the same.
"""

import ast
import functools
import shutil
from pathlib import Path

import pytest

from tinybnn.kernels import cache

FOLDER = Path(cache.__file__).parent
FILES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@functools.cache
def imported(name):
    """The files of the folder that a file of it imports from, as the parser of Python sees them."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("tinybnn") for alias in node.names), name
        elif isinstance(node, ast.ImportFrom) and node.module == "tinybnn.kernels":
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("tinybnn.kernels."):
            found.add(node.module.split(".")[2])
    return found


def sources(name):
    """A file, what it imports, what that imports, ..."""
    found, left = set(), [name]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left.extend(imported(one))
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the folder, whose files the stamps are made of."""
    for name in FILES:
        shutil.copy(FOLDER / f"{name}.py", tmp_path)
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    yield tmp_path
    cache._stamp.cache_clear()


def stamps(folder):
    cache._stamp.cache_clear()
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
    for name in ("input_gradient", "weight_gradient"):
        assert {"lookup", "masked", "selection", "simd"} <= sources(name)
