"""A student's whole course, from an empty folder to the last milestone, and a class that is graded.

Everything goes through the command line, in processes. TINYBNN_COMMAND names the `tinybnn` of an
environment made from a wheel (`.ci/run` makes one); without it, this Python's command runs
only the first chapter, since all chapters take some minutes. Tests of "each" take longest.
"""

import ast
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinybnn.course.catalogue import CHAPTERS

HERE = Path(__file__).parent
SOLUTIONS = HERE / "solutions" / "mybnn"
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


needs_wheel = pytest.mark.skipif(not COMMAND, reason="other tests do so in one process")


def solution(chapter):
    return (SOLUTIONS / f"{chapter.file}.py").read_text(encoding="utf-8")


def has_passed(verdict, one):
    assert verdict["state"] == "passed", verdict
    assert len(verdict["checked"]) == len(one.checks)
    return len(one.checks)


@pytest.mark.slow
@needs_wheel
def test_at_first_nothing_is_started(tmp_path):
    student = Student(tmp_path / "course")
    student.run("start", "course", inside=False)
    _, verdicts = student.run("check", "all", code=1)
    assert {one["state"] for one in verdicts} == {"not started"}
    _, status = student.run("status")
    assert [one["open"] for one in status["chapters"].values()] == [
        [one.number for one in chapter.exercises] for chapter in CHAPTERS.values()
    ]


@pytest.mark.slow
def test_from_an_empty_folder_to_the_last_milestone(tmp_path):
    student = Student(tmp_path / "course")
    student.run("start", "course", inside=False)
    _, status = student.run("status")
    chapters, milestones = status["chapters"], status["milestones"]
    assert list(chapters) == list(CHAPTERS)
    for number in milestones:
        out, _ = student.run("milestone", number, code=1)
        assert "needs exercises that have not passed" in out
    one = next(iter(CHAPTERS.values())).exercises[0]
    hints = [student.run("hint", one.number)[1]["hint"] for _ in range(4)]
    assert hints == [*one.hints, ""]

    checks, way = 0, CHAPTERS if COMMAND else dict([next(iter(CHAPTERS.items()))])
    for number, chapter in way.items():
        student.write(chapter.file, solution(chapter))
        _, verdicts = student.run("check", number)
        checks += sum(map(has_passed, verdicts, chapter.exercises))
    _, status = student.run("status")
    for number, chapter in way.items():
        assert status["chapters"][number]["passed"] == [one.number for one in chapter.exercises]
    if not COMMAND:
        return

    for number in milestones:
        out, result = student.run("milestone", number)
        assert "reached" in out and result["figures"] and not result["failed"]
    _, status = student.run("status")
    assert status["next"] == "" and all(one["reached"] for one in status["milestones"].values())
    exercises = sum(len(chapter.exercises) for chapter in way.values())
    print(f"\n{exercises} exercises with {checks} checks, {len(milestones)} milestones")


def hand_in(folder, text, file="bits.py"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text, encoding="utf-8")


@pytest.mark.slow
@needs_wheel
def test_a_class_is_graded_twice_with_the_same_result(tmp_path):
    teacher, sub = Student(tmp_path / "course"), tmp_path / "submissions"
    teacher.run("start", "course", inside=False)
    right = solution(CHAPTERS["00"])
    for chapter in CHAPTERS.values():
        hand_in(sub / "anna" / "mybnn", solution(chapter), f"{chapter.file}.py")
    hand_in(sub / "bea" / "week 1" / "bnn-course" / "mybnn", right)
    hand_in(sub / "Jörg (4711)", "def sign(:\n")
    hand_in(sub / "karl", "import tinybnn\n" + right)
    hand_in(sub / "lou", f"{right}\n\ndef sign(x):\n    while True:\n        pass\n")
    hand_in(sub / "mia", "", "mybnn.zip")
    for path in (teacher.folder / "mybnn").iterdir():
        hand_in(sub / "noah" / "mybnn", path.read_text(encoding="utf-8"), path.name)
    (sub / "anna" / "submitted").write_text("2026-10-16T19:30:00Z")
    words = ["--only", "00.1", "--only", "12.1", "--seconds", "10", "--due", "2026-10-16T18:00Z"]
    tables = []
    for out in ("first", "second"):
        table = tmp_path / out / "grades.csv"
        table.parent.mkdir()
        said, found = teacher.run("grade", str(sub), "--csv", str(table), *words, inside=False)
        tables.append({p.relative_to(tmp_path / out): p.read_bytes()
                       for p in table.parent.rglob("*") if p.is_file()})  # fmt: skip
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    points = {row["student"]: row["points"] for row in rows if row["points"] != "0"}
    assert len(rows) == 7 and points == {"anna": "2", "bea": "1"}
    remarks = {one["student"]: "; ".join(one["remarks"]) for one in found}
    assert remarks["anna"] == remarks["bea"] == "" and "does not run" in remarks["Jörg (4711)"]
    assert "imports tinybnn" in remarks["karl"] and "too slow: 00.1" in remarks["lou"]
    assert "mybnn.zip" in remarks["mia"] and "nothing is written" in remarks["noah"]
    assert {row["student"]: row["hours late"] for row in rows}["anna"] == "2"
    assert all(one["student"] in said for one in found)


each_chapter = pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda c: c.number)


@pytest.mark.slow
@needs_wheel
@each_chapter
def test_each_answer_counts_while_those_after_it_are_open(chapter, tmp_path):
    student = Student(tmp_path / "course")
    student.run("start", "course", inside=False)
    skeleton = (student.folder / "mybnn" / f"{chapter.file}.py").read_text(encoding="utf-8")
    for one in CHAPTERS.values():
        student.write(one.file, solution(one))
    for i, one in enumerate(chapter.exercises):
        hints = [student.run("hint", one.number)[1]["hint"] for _ in range(4)]
        assert hints == [*one.hints, ""]
        open_ = [other.name for other in chapter.exercises[i + 1 :]]
        student.write(chapter.file, unfinished(solution(chapter), skeleton, open_))
        _, [verdict] = student.run("check", one.number)
        has_passed(verdict, one)


@pytest.mark.slow
@needs_wheel
@each_chapter
def test_each_wrong_answer_is_caught(chapter, tmp_path):
    student = Student(tmp_path / "course")
    student.run("start", "course", inside=False)
    for one in CHAPTERS.values():
        student.write(one.file, solution(one))
    wrong = sorted((HERE / "wrong").glob(f"{chapter.number}_*.py"))
    assert len(wrong) >= 3 * len(chapter.exercises)
    named = 0
    for path in wrong:
        text = path.read_text(encoding="utf-8")
        student.write(chapter.file, f"{solution(chapter)}\n\n{text}")
        number = "{}.{}".format(*path.stem.split("_")[:2])
        _, [verdict] = student.run("check", number, code=1)
        names = next(n.value for n in ast.parse(text).body if isinstance(n, ast.Assign))
        assert verdict["state"] == "wrong", path
        named += ast.literal_eval(names) in verdict["message"]  # a slow one, or only by time
    print(f"\n{len(wrong)} wrong answers caught, {named} by their name")
