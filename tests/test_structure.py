"""The package's structure: which room may import which, and what an import may cost."""

import ast
import configparser
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinybnn

PACKAGE = Path(tinybnn.__file__).parent

# A room imports only from rooms of a lower floor.
FLOORS = {
    "typing": 0,
    "kernels": 1, "storage": 1, "tables": 1, "autograd": 1, "tensor": 2,
    "quantizers": 2, "functional": 2, "serialization": 2, "packed_codes": 2,
    "nn": 3, "optim": 4, "datasets": 3,
    "models": 4, "checkpoint": 4, "training": 5,
    "deploy": 5, "federated": 6,
    "analysis": 6, "testing": 6, "runs": 6,
    "plots": 7,
    "experiments": 8, "bench": 8, "course": 8,
    "cli": 9, "__main__": 10,
}  # fmt: skip


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def module(path):
    """Its dotted name."""
    dotted = ".".join(("tinybnn", *path.relative_to(PACKAGE).with_suffix("").parts))
    return dotted.removesuffix(".__init__")


def imports(path):
    """Dotted names of the tinybnn modules that a file imports, lazily or not.

    Imports under ``if TYPE_CHECKING:`` are for hints: they do not exist at run time.
    """
    modules = set()
    for node in statements_that_run(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            modules.add(node.module)
            # `from tinybnn.kernels import bits` names a module, not every name is one.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules.update(names & MODULES)
    return {name for name in modules if name.split(".")[0] == "tinybnn"}


def statements_that_run(node):
    """`ast.walk` without the bodies of ``if TYPE_CHECKING:``."""
    yield node
    is_for_hints = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in node.orelse if is_for_hints else ast.iter_child_nodes(node):
        yield from statements_that_run(child)


FILES = sorted(p for p in PACKAGE.rglob("*.py") if room(p) not in ("__init__", "data", "tutorials"))
MODULES = {module(path) for path in FILES}


def test_every_room_has_a_floor():
    assert {room(p) for p in FILES} <= set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = room(path)
    for name in imports(path):
        parts = name.split(".")[1:]
        if not parts or parts[0] not in FLOORS:
            continue  # tinybnn itself: its version
        other = parts[0]
        assert other == own or FLOORS[other] < FLOORS[own], f"{own} imports {name} from above"


ROOMS_OF_KERNELS = ("machine", "signs", "floats", "training")


def test_rooms_of_kernels_import_from_those_before_them():
    for path in FILES:
        if room(path) != "kernels" or path.parent.name not in ROOMS_OF_KERNELS:
            continue
        own = ROOMS_OF_KERNELS.index(path.parent.name)
        for name in imports(path):
            parts = name.split(".")[2:]
            assert not parts or ROOMS_OF_KERNELS.index(parts[0]) <= own, f"{path}: {name}"


def test_no_circle_inside_a_room():
    """Files in a room may import each other, but not in a circle."""
    edges = {module(path): imports(path) for path in FILES}
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done and name in edges:
            for other in edges[name]:
                if other != name and other != "tinybnn":
                    visit(other, [*trail, name])
            done.add(name)

    for name in edges:
        visit(name, [])


def test_all_packages_are_installed():
    setup = configparser.ConfigParser()
    assert setup.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    folders = [path for path in FILES if path.name == "__init__.py"]
    # The app that Flower runs is data.
    packages = {"tinybnn", *(module(path) for path in folders if "flower_app" not in path.parts)}
    assert packages <= {*setup["options"]["packages"].split()}


def test_files_are_written_by_one_function():
    """`storage.write_atomic`, so that a kill or a full disk leaves no half-written file."""
    writes = re.compile(
        r"""\.savefig\(|\.write_(text|bytes)\(|\bnp\.save|\bmkstemp\(|\bos\.(replace|rename)\(
        |\bopen\([^)\n]*["'][rb+t]*[wxa][rb+t]*["']""",
        re.VERBOSE,
    )
    writers = {
        f"{path.relative_to(PACKAGE)}: {match[0]}"
        for path in FILES
        for match in writes.finditer(path.read_text(encoding="utf-8"))
    }
    files = {text.split(":")[0] for text in writers}
    assert files <= {
        "storage.py",
        "kernels/machine/cache.py",  # on a lower floor, and into folders that it must not trust
        "plots/canvas.py",  # into the file that `write_atomic` opens
        "datasets/download.py",  # part files, which later calls continue
        "runs/folder.py",  # the lock
        "federated/launch.py",  # logs and settings of Flower's processes in a temporary folder
        "bench/peers.py",  # a pipe
        "course/child.py",  # crash logs, in a temporary folder
    }, writers  # fmt: skip


def test_numba_is_only_in_the_kernels():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert room(path) == "kernels" or "import numba" not in text, path


def test_formulas_name_no_kernel():
    """`kernels.dispatch` chooses the kernel, except for products of signs."""
    for path in FILES:
        if room(path) in ("functional", "quantizers") and path.name != "binary.py":
            kernels = {name for name in imports(path) if name.startswith("tinybnn.kernels.")}
            assert kernels <= {"tinybnn.kernels.dispatch", "tinybnn.kernels.machine.memory"}, path


PUBLIC = [name for name in tinybnn.__all__ if inspect.ismodule(getattr(tinybnn, name))]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_room_is_there_without_an_import_of_its_own(name):
    code = f"import tinybnn as tb; tb.{name}.__name__"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["", *PUBLIC])
def test_dir_shows_what_is_public_and_nothing_else(name):
    place = getattr(tinybnn, name) if name else tinybnn
    assert dir(place) == sorted(place.__all__) and len(set(place.__all__)) == len(place.__all__)
    for public in place.__all__:
        assert getattr(place, public) is not None
    own = {
        n
        for n, value in vars(place).items()
        if getattr(value, "__module__", None) == place.__name__ and not n.startswith("_")
    }
    assert own - {"annotations"} <= set(place.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tinybnn' has no attribute 'kernel'"):
        tinybnn.kernel  # noqa: B018


INHERITED = "import json, os; print(json.dumps({**os.environ}))"
ALL_IMPORTS = f"""
import importlib, json, os, subprocess, sys

before = {{**os.environ}}
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert {{**os.environ}} == before, name
inherited = json.loads(subprocess.check_output([sys.executable, "-c", {INHERITED!r}]))
assert inherited == before, inherited.items() ^ before.items()
"""


def test_imports_leave_the_environment_as_it_is():
    """Both as Python sees it and as processes started later inherit it."""
    names = sorted(name for name in MODULES if ".flower_app" not in name)
    assert len(names) > 200 and "tinybnn.kernels.machine.threads" in names
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "LC_CTYPE")}
    command = [sys.executable, "-c", ALL_IMPORTS, *names]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("late", ["numba", "matplotlib", "torch", "tqdm", "urllib.request", "ssl"])
def test_import_does_not_wait_for(late):
    code = f"import sys, tinybnn; sys.exit({late!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
