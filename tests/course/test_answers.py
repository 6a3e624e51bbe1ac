"""Right answers pass, empty files do not, and typical mistakes are called by their names."""

import importlib
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tinybnn.course.catalogue import CHAPTERS, exercise
from tinybnn.course.grading import grade

HERE = Path(__file__).parent
SKELETONS = HERE.parent.parent / "tutorials" / "mybnn"
SOLUTIONS = HERE / "solutions" / "mybnn"
WRONG = sorted((HERE / "wrong").glob("*.py"))
EXERCISES = [one for chapter in CHAPTERS.values() for one in chapter.exercises]


@contextmanager
def student(folder, number, files=SOLUTIONS, more=""):
    """The student's module of an exercise; `more` stands at its end and replaces definitions."""
    shutil.copytree(files, folder / "mybnn")
    name = CHAPTERS[number[:2]].file
    path = folder / "mybnn" / f"{name}.py"
    path.write_text(path.read_text() + "\n\n" + more)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module(f"mybnn.{name}")
    finally:
        sys.path.remove(str(folder))
        for module in [m for m in sys.modules if m.split(".")[0] == "mybnn"]:
            del sys.modules[module]


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_the_solution_passes(one, tmp_path):
    with student(tmp_path, one.number) as module:
        verdict = grade(one, module)
    assert verdict.passed, verdict.message
    assert len(verdict.checked) == len(one.checks)


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_a_missing_body_is_not_started(one, tmp_path):
    with student(tmp_path, one.number, SKELETONS) as module:
        assert grade(one, module).state == "not started"


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_an_empty_file_fails(one, tmp_path):
    with student(tmp_path, one.number) as module:
        for name in [n for n in vars(module) if not n.startswith("__")]:
            delattr(module, name)
        verdict = grade(one, module)
    assert verdict.state == "wrong" and one.name in verdict.message


@pytest.mark.parametrize("path", WRONG, ids=lambda p: p.stem)
def test_a_typical_mistake_is_named(path, tmp_path):
    number = "{}.{}".format(*path.stem.split("_")[:2])
    with student(tmp_path, number, more=path.read_text()) as module:
        verdict = grade(exercise(number), module)
        names = module.NAMES
    assert verdict.state == "wrong", verdict
    assert names in verdict.message, verdict.message


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_each_exercise_has_two_typical_mistakes(one):
    prefix = one.number.replace(".", "_") + "_"
    assert len([p for p in WRONG if p.stem.startswith(prefix)]) >= 2
