"""The examples in the README and in docstrings run and print the output shown."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest

import tinybnn

README = Path(__file__).parents[1] / "README.md"
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(tinybnn.__path__, "tinybnn.") if "__main__" not in m.name
)


@pytest.mark.parametrize("name", ["tinybnn", *MODULES])
def test_examples_in_docstrings(name):
    with np.printoptions(legacy=False):
        failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_examples_in_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(README), module_relative=False, encoding="utf-8")
    assert failed == 0
    assert tried >= 5


def test_files_that_the_readme_names_exist():
    import re

    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
