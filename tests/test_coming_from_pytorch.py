"""tutorials/coming_from_pytorch.md is true: each name in its tables exists, or does not."""

import functools
import importlib
import re
from pathlib import Path

import pytest

import tinybnn
from tinybnn import Tensor, autograd, nn, optim
from tinybnn.autograd.instead import INSTEAD

PAGE = (Path(__file__).parents[1] / "tutorials" / "coming_from_pytorch.md").read_text("utf-8")
ROOMS = {"F": "tinybnn.functional"}
ROOMS |= {name: f"tinybnn.{name}" for name in ("nn", "optim", "datasets", "deploy", "analysis")}


def rows(title):
    """The rows below a heading, as lists of cells."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    table = re.findall(r"^\| (.*?) \| (.*) \|$", section, flags=re.MULTILINE)
    return [row for row in table if row[0] not in ("room", "name", "in PyTorch")]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def resolve(path):
    """The object with a dotted name; an AttributeError if there is none."""
    package, *names = path.split(".")
    return functools.reduce(getattr, names, importlib.import_module(package))


THERE = {names(room)[0]: names(cell) for room, cell in rows("Available under PyTorch's names")}
ONLY_HERE = {names(room)[0]: names(cell) for room, cell in rows("Only in tinybnn")}
ABSENT = [(name, cell) for left, cell in rows("Not available") for name in names(left)]


@pytest.mark.parametrize("room", THERE)
def test_what_is_there(room):
    place = resolve(room)
    assert THERE[room]
    if place is Tensor:
        place = Tensor([[1.0]])  # some names are slots or properties of an object
    assert not [name for name in THERE[room] if not hasattr(place, name)]


@pytest.mark.parametrize("room", ONLY_HERE)
def test_what_is_only_here(room):
    assert not [name for name in ONLY_HERE[room] if not hasattr(resolve(room), name)]
    assert not set(ONLY_HERE[room]) & set(THERE[room])


def test_what_is_there_with_a_difference():
    for left, _ in rows("Available with a difference"):
        resolve(names(left)[0])


@pytest.mark.parametrize("name", [name for name, _ in ABSENT if name.startswith("torch.")])
def test_what_is_not_there(name):
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        resolve(name.replace("torch", "tinybnn", 1))


def test_every_instead_exists():
    checked = 0
    for _, cell in ABSENT:
        for text in names(cell):
            if match := re.match(r"(\w+)((?:\.\w+)+)", text):
                room = ROOMS.get(match[1], match[1])
                if room.startswith("tinybnn"):
                    resolve(room + match[2])
                    checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    "room, public",
    [
        ("tinybnn.nn", nn.__all__),
        ("tinybnn.nn.init", nn.init.__all__),
        ("tinybnn.nn.utils", nn.utils.__all__),
        ("tinybnn.optim", optim.__all__),
        ("tinybnn.nn.Module", dir(nn.Module)),
        ("tinybnn.Tensor", dir(Tensor)),
    ],
)
def test_everything_public_is_on_the_page(room, public):
    told = {*THERE[room], *ONLY_HERE.get(room, ())}
    if room == "tinybnn.optim":
        told |= set(THERE["tinybnn.optim.lr_scheduler"])
    assert not {name for name in public if not name.startswith("_")} - told


def test_functions_of_tensors_are_on_the_page():
    functions = {n for n in autograd.__all__ if n.islower() and n in vars(Tensor)}
    assert not functions - {*THERE["tinybnn"], *ONLY_HERE["tinybnn"]}


def test_missing_methods_are_those_that_errors_name():
    told = {name for name, _ in ABSENT if not name.startswith("torch.")}
    assert told == set(INSTEAD)
    assert not [name for name in told if hasattr(Tensor, name)]


def test_the_import_lines_of_the_page_run():
    code = PAGE.split("```python\n")[1].split("```")[0]
    space = {}
    exec(code, space)
    assert space["torch"] is tinybnn and space["F"].relu is nn.functional.relu
