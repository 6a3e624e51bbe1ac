"""The test suite on machines and with versions other than these."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = """
import platform, sys
system, machine, *arguments = sys.argv[1:]
import sysconfig
import numba, numpy, pytest

sysconfig.get_config_vars()  # of the machine that this runs on
sys.platform, platform.machine = system, lambda: machine
sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", *arguments]))
"""


def run_on(system, machine, *arguments):
    """What pytest prints where Python says that it runs on this system and machine."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-c", RUN, system, machine, *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    return run.stdout + run.stderr


def test_names_of_x86_cpus_are_for_x86():
    """LLVM ends the process when it is asked for a CPU that its architecture does not have."""
    files = (HERE / f"test_{name}.py" for name in ("simd", "signed", "convolution_kernels"))
    printed = run_on(sys.platform, "aarch64", *files, "-k", "smaller_cpus")
    assert "6 skipped" in printed and "passed" not in printed, printed


WARNING = """
import warnings


def test_warning():
    warnings.warn("divide by zero encountered in {function}", RuntimeWarning)
"""


@pytest.mark.parametrize(
    "system, machine, function, passes",
    [
        ("darwin", "arm64", "matmul", True),
        ("darwin", "arm64", "divide", False),
        ("linux", "aarch64", "matmul", False),
    ],
)
def test_warnings_of_matrix_products_on_macs(system, machine, function, passes, tmp_path):
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(WARNING.replace("{function}", function))
    printed = run_on(system, machine, "-c", HERE.parent / "setup.cfg", tmp_path / "test_one.py")
    assert ("1 passed" if passes else "1 failed") in printed, printed


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
