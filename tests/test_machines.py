"""The test suite on machines and with versions other than these."""

import configparser
import os
import platform
import re
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

HERE = Path(__file__).parent
RUN = """
import platform, sys
import numba, numpy, pytest  # they look at the machine themselves

platform.machine = lambda: "aarch64"
sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_names_of_x86_cpus_are_for_x86():
    """LLVM ends the process when it is asked for a CPU that its architecture does not have."""
    files = [HERE / f"test_{name}.py" for name in ("simd", "ordered", "convolution_kernels")]
    command = [sys.executable, "-c", RUN, *map(str, files), "-k", "smaller_cpus"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert "6 skipped" in run.stdout and "passed" not in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize(
    "system, machine, function, passes",
    [
        ("darwin", "arm64", "matmul", True),
        ("darwin", "arm64", "divide", False),
        ("linux", "aarch64", "matmul", False),
    ],
)
def test_warnings_of_matrix_products_on_macs(
    system, machine, function, passes, monkeypatch, request
):
    filters = []
    conftest = request.config.pluginmanager.getplugin(str(HERE / "conftest.py"))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    conftest.pytest_configure(Mock(addinivalue_line=lambda name, line: filters.append(line)))
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for action, message, category in (line.split(":") for line in filters):
            assert category == "RuntimeWarning"
            warnings.filterwarnings(action, message, RuntimeWarning)
        with nullcontext() if passes else pytest.raises(RuntimeWarning):
            warnings.warn(f"divide by zero encountered in {function}", RuntimeWarning, stacklevel=1)


def test_lowest_versions():
    """The constraints of `.ci/run full` are the bounds of setup.cfg, all of them."""
    command = [sys.executable, HERE.parent / ".ci" / "lowest.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    constraints = dict(re.findall(r"^(\S+)==([\d.]+)$", printed, re.MULTILINE))
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(HERE.parent / "setup.cfg", encoding="utf-8")
    bounds = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    assert constraints == dict(re.findall(r"^(\S+) >= ([\d.]+)$", bounds, re.MULTILINE))
    # Numba 0.60 confuses long tuples; matplotlib 3.8.0 cannot be installed beside NumPy 2.0.
    assert tuple(map(int, constraints["numba"].split("."))) >= (0, 61)
    assert tuple(map(int, constraints["matplotlib"].split("."))) >= (3, 8, 4)
