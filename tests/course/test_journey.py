"""A student's whole course: from an empty folder, answer by answer, to the last milestone.

Everything goes through the command line, in processes. TINYBNN_COMMAND names the `tinybnn` of an
environment made from a wheel (`.ci/run` makes one); without it, this Python's command runs
only the first chapter, since all chapters take some minutes.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinybnn.course.catalogue import CHAPTERS

HERE = Path(__file__).parent
SOLUTIONS = HERE / "solutions" / "mybnn"
WRONG = sorted((HERE / "wrong").glob("*.py"))
COMMAND = os.environ.get("TINYBNN_COMMAND")


class Student:
    """Runs `tinybnn course` in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, *words, code=0, inside=True):
        """A command's standard output, and the figures that it writes as JSON."""
        figures = self.folder.parent / "figures.json"
        program = [COMMAND] if COMMAND else [sys.executable, "-m", "tinybnn"]
        done = subprocess.run(
            [*program, "course", *words, "--json", str(figures)],
            cwd=self.folder if inside else self.folder.parent,
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout, json.loads(figures.read_text())

    def write(self, name, text):
        (self.folder / "mybnn" / f"{name}.py").write_text(text, encoding="utf-8")


def definitions(text):
    """The line range of each top-level definition in a file: name -> (first, end)."""
    line_ranges = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            line_ranges[node.name] = first - 1, node.end_lineno
    return line_ranges


def unfinished(solution, skeleton, open_):
    """The solution, with the skeleton's definitions for open exercises."""
    lines, missing = solution.split("\n"), skeleton.split("\n")
    places, given = definitions(solution), definitions(skeleton)
    for name in sorted(open_, key=lambda name: -places[name][0]):
        (first, end), (start, stop) = places[name], given[name]
        lines[first:end] = missing[start:stop]
    return "\n".join(lines)


@pytest.mark.slow
def test_from_an_empty_folder_to_the_last_milestone(tmp_path):
    student = Student(tmp_path / "course")
    student.run("start", "course", inside=False)
    _, status = student.run("status")
    chapters, milestones = status["chapters"], status["milestones"]
    assert list(chapters) == list(CHAPTERS)

    _, verdicts = student.run("check", "all", code=1)
    assert {one["state"] for one in verdicts} == {"not started"}
    for number in milestones:
        out, _ = student.run("milestone", number, code=1)
        assert "needs exercises that have not passed" in out

    checks, way = 0, CHAPTERS if COMMAND else dict([next(iter(CHAPTERS.items()))])
    for number, chapter in way.items():
        solution = (SOLUTIONS / f"{chapter.file}.py").read_text(encoding="utf-8")
        skeleton = (student.folder / "mybnn" / f"{chapter.file}.py").read_text(encoding="utf-8")
        exercises = chapter.exercises
        hints = [student.run("hint", exercises[0].number)[1]["hint"] for _ in range(4)]
        assert hints == [*exercises[0].hints, ""]
        for i, one in enumerate(exercises):
            open_ = [other.name for other in exercises[i + 1 :]]
            student.write(chapter.file, unfinished(solution, skeleton, open_))
            _, [verdict] = student.run("check", one.number)
            assert verdict["state"] == "passed"
            assert len(verdict["checked"]) == len(one.checks)
            checks += len(one.checks)
        _, status = student.run("status")
        assert len(status["chapters"][number]["passed"]) == len(exercises)

    exercises = sum(len(chapter.exercises) for chapter in way.values())
    if not COMMAND:
        return

    for number in milestones:
        out, result = student.run("milestone", number)
        assert "reached" in out and result["figures"] and not result["failed"]
    _, status = student.run("status")
    assert status["next"] == "" and all(one["reached"] for one in status["milestones"].values())

    print(f"\n{exercises} exercises with {checks} checks, {len(milestones)} milestones")


@pytest.mark.slow
@pytest.mark.skipif(not COMMAND, reason="test_answers.py does so in one process")
def test_wrong_answers_are_caught(tmp_path):
    student = Student(tmp_path / "course")
    student.run("start", "course", inside=False)
    for chapter in CHAPTERS.values():
        student.write(chapter.file, (SOLUTIONS / f"{chapter.file}.py").read_text(encoding="utf-8"))
    named = 0
    for path in WRONG:
        number = "{}.{}".format(*path.stem.split("_")[:2])
        file = CHAPTERS[number[:2]].file
        solution = (SOLUTIONS / f"{file}.py").read_text(encoding="utf-8")
        text = path.read_text(encoding="utf-8")
        student.write(file, f"{solution}\n\n{text}")
        _, [verdict] = student.run("check", number, code=1)
        names = next(n.value for n in ast.parse(text).body if isinstance(n, ast.Assign))
        assert verdict["state"] == "wrong", path
        named += ast.literal_eval(names) in verdict["message"]  # a slow one, or only by time
        student.write(file, solution)
    print(f"\n{len(WRONG)} wrong answers caught, {named} by their name")
