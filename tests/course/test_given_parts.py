"""The grader compares complete parts of the exercise files with those in the student's files."""

import shutil
from pathlib import Path

import pytest

from tinybnn.course.catalogue import CHAPTERS, exercise
from tinybnn.course.folder import material
from tinybnn.course.source import altered, is_begun

SOLUTIONS = Path(__file__).parent / "solutions" / "mybnn"
EXERCISES = [one for chapter in CHAPTERS.values() for one in chapter.exercises]


@pytest.fixture
def course(tmp_path):
    shutil.copytree(SOLUTIONS, tmp_path / "mybnn")
    return tmp_path


def rewrite(course, old, new, file="engine.py"):
    path = course / "mybnn" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_solutions_change_nothing_and_are_begun(one, course):
    assert altered(one, course) == "" and is_begun(one, course)


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_nothing_is_begun_in_the_files_as_they_came(one):
    assert altered(one, material()) == "" and not is_begun(one, material())


HARMLESS = {
    "a helper of one's own": ("\n\ndef add(a", "\n\ndef mine(a):\n    return a\n\n\ndef add(a"),
    "a comment": ("    def relu(self):", "    # a thought\n    def relu(self):"),
    "a docstring": ("    def relu(self):", '    def relu(self):\n        """Mine."""'),
    "other spaces": ("    def relu(self):", "    def relu( self ):\n"),
    "a further import": ("import numpy as np", "import math\nimport numpy as np"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_says_nothing(kind, course):
    rewrite(course, *HARMLESS[kind])
    assert altered(exercise("01.1"), course) == ""


CHANGED = {
    "another dtype": ("data.astype(np.float32)", "data.astype(np.float64)", "class Tensor in"),
    "a name": ("    def relu(self):", "    def ReLU(self):", "class Tensor in"),
    "a part of a function": ("unbroadcast(grad * b.data, a.shape)", "grad * b.data", "multiply in"),
    "a definition that is gone": ("def subtract(", "def minus(", "subtract, gone from"),
    "a definition that replaces it": ("def matmul(", "add = max\n\n\ndef matmul(", "add in"),
}


@pytest.mark.parametrize("kind", CHANGED)
@pytest.mark.parametrize("number", ["01.1", "03.1", "05.4"])
def test_a_given_part_that_was_changed(kind, number, course):
    """Also where another file imports it."""
    old, new, said = CHANGED[kind]
    rewrite(course, old, new)
    text = altered(exercise(number), course)
    assert f"{said} mybnn/engine.py" in text and "\n" not in text
    if "gone" not in said:
        lines = (course / "mybnn" / "engine.py").read_text().split("\n")
        number = int(text.partition("(line ")[2].partition(")")[0])
        assert new.strip().split("\n")[0] in "\n".join(lines[number - 1 : number + 2])


def test_a_constant_that_was_changed(course):
    rewrite(course, "0x5555555555555555", "0x5555", "packing.py")
    assert "PAIRS in mybnn/packing.py" in altered(exercise("04.1"), course)
    assert altered(exercise("01.1"), course) == ""


@pytest.mark.parametrize("content", [b"def f(:\n", b"\0", b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_has_no_parts(content, course):
    path = course / "mybnn" / "engine.py"
    path.unlink() if content is None else path.write_bytes(content)
    assert altered(exercise("01.1"), course) == "" and is_begun(exercise("01.1"), course)
