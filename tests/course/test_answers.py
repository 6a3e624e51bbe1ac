"""Right answers pass, empty files do not, and typical mistakes are named."""

import ast
import importlib
from contextlib import contextmanager

import pytest

from tinybnn.course.catalogue import CHAPTERS, exercise
from tinybnn.course.grading import grade

from students import HERE, SKELETONS, SOLUTIONS, student

WRONG = sorted((HERE / "wrong").glob("*.py"))
EXERCISES = [one for chapter in CHAPTERS.values() for one in chapter.exercises]


@contextmanager
def answer(folder, number, files=SOLUTIONS, more=""):
    """The student's module of an exercise; `more` is appended and replaces definitions."""
    name = CHAPTERS[number[:2]].file
    with student(folder, files, **{name: more}):
        yield importlib.import_module(f"mybnn.{name}")


def docstrings(path):
    """Name of each definition -> its docstring."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    kinds = (ast.FunctionDef, ast.ClassDef)
    docstrings_by_name = {
        node.name: ast.get_docstring(node) for node in nodes if isinstance(node, kinds)
    }
    return {name: text for name, text in docstrings_by_name.items() if text}


@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda c: c.number)
def test_a_solution_answers_what_the_skeleton_asks(chapter):
    solution, skeleton = (docstrings(p / f"{chapter.file}.py") for p in (SOLUTIONS, SKELETONS))
    assert skeleton and skeleton.items() <= solution.items()


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_the_solution_passes(one, tmp_path):
    with answer(tmp_path, one.number) as module:
        verdict = grade(one, module)
    assert verdict.passed, verdict.message
    assert len(verdict.checked) == len(one.checks)


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_a_missing_body_is_not_started(one, tmp_path):
    with answer(tmp_path, one.number, SKELETONS) as module:
        assert grade(one, module).state == "not started"


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_an_empty_file_fails(one, tmp_path):
    with answer(tmp_path, one.number) as module:
        for name in [n for n in vars(module) if not n.startswith("__")]:
            delattr(module, name)
        verdict = grade(one, module)
    assert verdict.state == "wrong" and one.name in verdict.message


@pytest.mark.parametrize("path", WRONG, ids=lambda p: p.stem)
def test_a_typical_mistake_is_named(path, tmp_path):
    number = "{}.{}".format(*path.stem.split("_")[:2])
    with answer(tmp_path, number, more=path.read_text()) as module:
        verdict = grade(exercise(number), module)
        names = module.NAMES
    assert verdict.state == "wrong", verdict
    assert names in verdict.message, verdict.message


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_each_exercise_has_two_typical_mistakes(one):
    prefix = one.number.replace(".", "_") + "_"
    assert len([p for p in WRONG if p.stem.startswith(prefix)]) >= 2
