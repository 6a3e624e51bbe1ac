"""Grade a class: each student's exercises, points by a rubric, a report a student, a table."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tinybnn import __version__, tables
from tinybnn.course.catalogue import exercise
from tinybnn.course.child import PACKAGE
from tinybnn.course.folder import material
from tinybnn.course.grading import STATES, Verdict, expect_hypothesis, grade_file
from tinybnn.course.report import messages
from tinybnn.course.source import is_as_it_came
from tinybnn.course.submissions import Submission, read_submission, students
from tinybnn.storage import StorageError, printable, read_json, write_atomic, write_json

KEPT = "grades.json"  # in the folder of reports: the verdicts
_FORMAT = "tinybnn-grades"
_REFUSED = re.compile(r"(\S+\.py, line \d+): ([\w.]+) may not be imported here")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
_LINE = re.compile(r"\n  in      .*")


@dataclass(frozen=True)
class Grade:
    """What came of a student's work.

    Parameters
    ----------
    submission : Submission
    verdicts : dict of str to Verdict
        By the exercise's number.
    points : dict of str to float
        What each exercise gives when it passes.
    due : datetime or None
        Until when the work was to be handed in.
    """

    submission: Submission
    verdicts: dict[str, Verdict]
    points: dict[str, float]
    due: datetime | None = None

    @property
    def total(self) -> float:
        return sum(map(self.earned, self.verdicts))

    def earned(self, number: str) -> float:
        """Points for an exercise."""
        return self.points[number] if self.verdicts[number].passed else 0.0

    @property
    def hours_late(self) -> int | None:
        """Begun hours since the work was due; None where nothing says so."""
        if self.due is None or self.submission.submitted is None:
            return None
        late = (self.submission.submitted - self.due).total_seconds()
        return max(0, math.ceil(late / 3600))

    @property
    def remarks(self) -> list[str]:
        """What a teacher should know beside the points."""
        found = {f"imports {name} ({place})": None
                 for v in self.verdicts.values()
                 for place, name in _REFUSED.findall(v.message)}  # fmt: skip
        for state, text in (("broken", "does not run"), ("too slow", "too slow")):
            if numbers := [n for n, v in self.verdicts.items() if v.state == state]:
                found[f"{text}: {' '.join(numbers)}"] = None
        states = {verdict.state for verdict in self.verdicts.values()}
        if self.submission.files and states == {"not started"}:
            found["nothing is written"] = None
        return [*self.submission.remarks, *found]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "student": printable(self.submission.student),
            "points": self.total,
            "of": sum(self.points.values()),
            "submitted": _time(self.submission.submitted) or None,
            "hours_late": self.hours_late,
            "remarks": self.remarks,
            "report": report_name(self.submission.student),
            "exercises": {number: verdict.state for number, verdict in self.verdicts.items()},
        }


# ---------------------------------------------------------------------------------------- grading


def grade_class(
    folder: str | os.PathLike[str],
    reports: str | os.PathLike[str],
    table: str | os.PathLike[str],
    points: dict[str, float],
    due: datetime | None = None,
    seconds: float | None = None,
    again: bool = False,
    say: Callable[[Grade], Any] = lambda grade: None,
) -> list[Grade]:
    """Grade the work of all students, and write a report for each and the tables.

    A verdict is kept in the folder of reports. It is used again as long as the student's files, the
    time limit and the course are the same; so an interrupted call goes on where it was, and a
    repeated one writes the same bytes.

    Parameters
    ----------
    folder : str or PathLike
        Holds a folder a student.
    reports : str or PathLike
        The folder of reports: new, empty, or one of an earlier call.
    table : str or PathLike
        The CSV file to write.
    points : dict of str to float
        By the exercise's number, as `read_rubric` returns them. Others are not graded.
    due : datetime, optional
        Until when the work was to be handed in; being late does not change the points.
    seconds : float, optional
        Time limit for an exercise, where its own is longer.
    again : bool
        Whether to grade anew what has a verdict.
    say : callable
        Gets each `Grade` as soon as it is known.

    Returns
    -------
    list of Grade
        In the order of the folders' names.

    Raises
    ------
    ValueError
        If a folder is not what it should be.
    OSError
        If a folder cannot be read or a file cannot be written.
    """
    expect_hypothesis()
    folder, reports, table = (os.path.realpath(path) for path in (folder, reports, table))
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is no folder; expected one with a folder for each student")
    for what, path in (("the folder of reports", reports), ("the table", table)):
        if path == folder or path.startswith(os.path.join(folder, "")):
            raise ValueError(f"{path}: {what} lies in the folder of submissions; choose another")
    names, _ = students(folder)
    if not names:
        raise ValueError(f"{folder} holds no folders; expected one for each student")
    kept, grades = _Kept(reports, seconds, again), []
    os.makedirs(os.path.join(reports, "students"), exist_ok=True)
    kept.save()  # marks the folder as one of reports
    for name in names:
        submission = read_submission(folder, name)
        verdicts = _verdicts(submission, points, kept, (folder, reports, table, *_solutions()))
        grade = Grade(submission, verdicts, points, due)
        write_atomic(os.path.join(reports, report_name(name)), report(grade).encode())
        grades.append(grade)
        say(grade)
    write_atomic(table, as_csv(grades).encode())
    write_atomic(os.path.join(reports, "summary.md"), summary(grades).encode())
    return grades


def _verdicts(submission, numbers, kept, closed):
    """The verdicts on a student's exercises; those that are not kept come from processes."""
    known = kept.of(submission)
    missing = [number for number in numbers if number not in known]
    for number in missing:
        with tempfile.TemporaryDirectory(prefix="tinybnn-") as copy:  # code may change it
            for name, content in (_originals() | submission.files).items():
                path = Path(copy, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, content)
            known[number] = _verdict(number, copy, kept.seconds, closed)
    if missing:
        kept.put(submission, known)
    return {number: known[number] for number in numbers}


def _verdict(number, copy, seconds, closed):
    one = exercise(number)
    if is_as_it_came(one, copy):
        return Verdict(number, "not started", one.task)
    if seconds is not None:
        one = dataclasses.replace(one, seconds=min(seconds, one.seconds))
    return _lasting(grade_file(one, copy, closed), copy)


def _lasting(verdict, copy):
    """A verdict without what differs from run to run: times, places in memory, temporary names."""

    def lasting(text):
        for folder in (os.path.realpath(copy), copy):
            text = text.replace(folder, ".")
        return _ADDRESS.sub("0x...", text)

    printed, message = verdict.printed, verdict.message
    if verdict.state == "too slow":  # how far it came, and in which line it was
        printed, message = "", _LINE.sub("", message)
    return dataclasses.replace(
        verdict, message=lasting(message), printed=lasting(printed), seconds=0.0
    )


class _Kept:
    """The verdicts in the folder of reports.

    Parameters
    ----------
    reports : str
    seconds : float or None
        The time limit, which is part of what a verdict holds for.
    again : bool
        Whether verdicts of earlier calls count for nothing.
    """

    def __init__(self, reports, seconds, again):
        self.path, self.seconds = os.path.join(reports, KEPT), seconds
        self._of = {}
        if os.path.lexists(self.path):
            self._of = self._read() if not again else {}
        elif os.path.isdir(reports) and os.listdir(reports):
            raise ValueError(f"{reports} holds other things; choose a new or an empty folder")
        elif os.path.lexists(reports) and not os.path.isdir(reports):
            raise ValueError(f"{reports} is a file, expected a folder for the reports")

    def _read(self):
        try:
            value = read_json(self.path)
            if value["format"] != _FORMAT:
                raise ValueError
            return {
                key: {
                    number: Verdict(**{**fields, "checked": tuple(fields["checked"])})
                    for number, fields in verdicts.items()
                }
                for key, verdicts in value["verdicts"].items()
            }
        except (StorageError, ValueError, KeyError, TypeError, AttributeError):
            raise StorageError(
                f"{self.path} is damaged or another program's; with another folder of reports "
                "(--reports) all is graded anew"
            ) from None

    def of(self, submission):
        return dict(self._of.get(self._key(submission), {}))

    def put(self, submission, verdicts):
        self._of[self._key(submission)] = verdicts
        self.save()

    def save(self):
        verdicts = {
            key: {number: verdict.to_dict() for number, verdict in sorted(found.items())}
            for key, found in sorted(self._of.items())
        }
        write_json(self.path, {"format": _FORMAT, "verdicts": verdicts})

    def _key(self, submission):
        """A hash of all that a verdict depends on; the same files have the same verdicts."""
        found = hashlib.sha256(json.dumps([_course(), self.seconds]).encode())
        for name, content in sorted(submission.files.items()):
            found.update(json.dumps([name, len(content)]).encode() + content)
        return found.hexdigest()


@functools.cache
def _course():
    """A hash of the checks and of what runs them."""
    found = hashlib.sha256(__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    for content in _originals().values():
        found.update(content)
    return found.hexdigest()


def _solutions():
    """The folder of solutions, which lies beside the package in a checkout."""
    folder = Path(__file__).resolve().parents[2] / "tests" / "course"
    return [str(folder)] if folder.is_dir() else []


@functools.cache
def _originals():
    """The exercise files as they come with the course, in place of those not handed in."""
    folder = material()
    paths = sorted((folder / PACKAGE).glob("*.py")) if folder is not None else []
    return {f"{PACKAGE}/{path.name}": path.read_bytes() for path in paths}


# ---------------------------------------------------------------------------------------- writing


def report_name(student: str) -> str:
    """Name of a student's report in the folder of reports, made of harmless characters."""
    plain = re.sub(r"[^\w.()@+ -]", "_", student)[:80].lstrip("-. ")
    if plain != student:  # another student's name may look the same now
        plain += "-" + hashlib.sha256(os.fsencode(student)).hexdigest()[:8]
    return f"students/{plain}.md"


def line(grade: Grade) -> str:
    """A grade in one line, for a terminal."""
    late = f"{grade.hours_late} h late" if grade.hours_late else ""
    total = f"{_number(grade.total)} of {_number(sum(grade.points.values()))}"
    name = printable(grade.submission.student)
    return f"{name:<30}  {total:>12}  {'; '.join(filter(None, (late, *grade.remarks)))}".rstrip()


def as_csv(grades: Sequence[Grade]) -> str:
    """The grades as CSV: a line a student, the points of each exercise in a column."""
    file = io.StringIO()
    writer = csv.writer(file)
    numbers = list(grades[0].points)
    writer.writerow(
        ["student", "points", "of", *numbers, "submitted", "hours late", "remarks", "report"]
    )
    for one in grades:
        writer.writerow([
            cell(one.submission.student), _number(one.total), _number(sum(one.points.values())),
            *(_number(one.earned(number)) for number in numbers),
            _time(one.submission.submitted), "" if one.hours_late is None else one.hours_late,
            cell("; ".join(one.remarks)), cell(report_name(one.submission.student)),
        ])  # fmt: skip
    return file.getvalue()


def cell(text: str) -> str:
    """A text that a spreadsheet shows and does not compute."""
    text = printable(text)
    return f"'{text}" if re.match(r"\s*[=+\-@|%]", text) else text


def report(grade: Grade) -> str:
    """A student's report, in Markdown."""
    lines = [f"# {_plain(grade.submission.student)}", ""]
    lines += [f"Points: {_number(grade.total)} of {_number(sum(grade.points.values()))}", ""]
    lines += [f"Submitted: {_time(grade.submission.submitted) or 'nothing'}{_late(grade)}", ""]
    lines += [f"- {_plain(text)}" for text in grade.remarks]
    rows = [
        [number, exercise(number).name, verdict.state, _number(grade.earned(number)),
         _number(grade.points[number])]
        for number, verdict in grade.verdicts.items()
    ]  # fmt: skip
    header = ["exercise", "name", "state", "points", "of"]
    lines += [""] * bool(grade.remarks) + [tables.markdown(header, rows)]
    for text in messages(v for v in grade.verdicts.values() if v.state != "not started"):
        lines += ["    " + printable(line) if line else "" for line in text.strip("\n").split("\n")]
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def summary(grades: Sequence[Grade]) -> str:
    """The class in two tables, in Markdown: a line a student, and a line an exercise."""
    rows = [
        [_plain(one.submission.student), _number(one.total), _hours(one),
         _plain("; ".join(one.remarks)) or " "]
        for one in grades
    ]  # fmt: skip
    total = _number(sum(grades[0].points.values()))
    text = f"# Grades\n\nStudents: {len(grades)}\n\n"
    text += tables.markdown(["student", f"points of {total}", "hours late", "remarks"], rows)
    rows = [
        [number, exercise(number).name, *_counts(grades, number)] for number in grades[0].points
    ]
    return f"{text}\n{tables.markdown(['exercise', 'name', *STATES], rows)}"


def _counts(grades, number):
    """How many students have each state in an exercise."""
    found = Counter(one.verdicts[number].state for one in grades)
    return [found[state] for state in STATES]


def _hours(grade):
    return " " if grade.hours_late is None else str(grade.hours_late)


def _late(grade):
    if not grade.hours_late:
        return ""
    hours = f"{grade.hours_late} hour{'s' * (grade.hours_late != 1)}"
    return f", {hours} late (due {_time(grade.due)})"


def _number(value):
    return f"{value:.10g}"


def _time(moment):
    return "" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _plain(text):
    """A text in Markdown that is shown as it is."""
    return re.sub(r"([\\`*\[\]<>|~$#!&])", r"\\\1", printable(text))
