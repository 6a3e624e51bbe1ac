"""The recipes of CONTRIBUTING.md, applied literally to a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from test_structure import FLOORS

ROOT = Path(__file__).parents[1]
BLOCK = r"```\w+\n(.*?)```"
STEP = re.compile(
    rf"^(?P<verb>Append to|New file|In) `(?P<file>[^`]+)`(?:, replace|:)\n\n{BLOCK}"
    rf"(?:\n\nwith\n\n{BLOCK})?|^Run\n\n(?P<commands>(?:    [^\n]+\n)+)",
    re.MULTILINE | re.DOTALL,
)
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
RECIPES = [part for part in re.split("^### ", PAGE, flags=re.M) if part.startswith("Adding")]


def change(step, folder):
    """Apply one block, or a pair of blocks, to its file."""
    path, text, new = folder / step["file"], step[3], step[4]
    if step["verb"] == "New file":
        assert not path.exists()
        path.write_text(text, "utf-8")
        return
    old = path.read_text("utf-8")
    if step["verb"] == "In":
        text, new = text.removesuffix("\n"), new.removesuffix("\n")
        assert old.count(text) == 1, f"{step['file']} holds it {old.count(text)} times: {text}"
        path.write_text(old.replace(text, new), "utf-8")
    else:
        path.write_text(f"{old}\n\n{text}", "utf-8")


def run(command, folder):
    """A printed command, in the copy; nothing of it may fail or be skipped entirely."""
    program, *words = shlex.split(command)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, "-m", program, "-q", "-p", "no:cacheprovider", *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"


@pytest.mark.slow
def test_a_recipe_that_does_not_work(tmp_path):
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for name in ("tinybnn", "tests", "data", "tutorials"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "setup.cfg", folder)
    for recipe in RECIPES:
        commands = []
        for step in STEP.finditer(recipe):
            if step["commands"]:
                commands += step["commands"].splitlines()
            else:
                change(step, folder)
        assert commands, recipe[:40]
        for command in commands:
            run(command.strip(), folder)


def test_a_block_that_no_test_applies():
    assert len(RECIPES) == 4
    for recipe in RECIPES:
        steps = list(STEP.finditer(recipe))
        assert sum(2 if step[4] else 1 for step in steps if step[3]) == recipe.count("```") / 2


def test_a_module_that_the_layout_leaves_out():
    aliases = "tensor", "__main__"  # of autograd for users, and of cli for `python -m`
    rows = re.findall(r"^\| (\d) \| (.+?) \|", PAGE, re.MULTILINE)
    layout = {
        name: int(floor)
        for floor, names in rows
        for name in re.findall(r"`(\w+)(?:\.py|/)`", names)
    }
    assert layout == {name: floor for name, floor in FLOORS.items() if name not in aliases}
