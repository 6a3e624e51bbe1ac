"""Check exercises in turn, record which passed, and describe the verdicts."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tinybnn import tables
from tinybnn.course.catalogue import CHAPTERS, exercise, select, student_file
from tinybnn.course.folder import LEVELS, Progress, find_folder, fingerprint
from tinybnn.course.grading import Verdict, grade_file
from tinybnn.course.process import run_in_child
from tinybnn.course.source import is_begun

_PRINTED = 20  # lines shown of the output of code that passes
_PATIENCE = 5  # a milestone's time limit, in multiples of its time with good answers on one core


class Report(tuple[Verdict, ...]):
    """Verdicts, which print as a line for each, followed by messages.

    Parameters
    ----------
    verdicts : iterable of Verdict
    remarks : iterable of str
        Remarks on all of them together, one line each.

    Examples
    --------
    >>> print(Report([Verdict("00.1", "passed", seconds=1.0)]))
    00.1  sign                    passed         1.0 s
    """

    remarks: tuple[str, ...]

    def __new__(cls, verdicts: Iterable[Verdict], remarks: Iterable[str] = ()) -> Report:
        self = super().__new__(cls, verdicts)
        self.remarks = tuple(remarks)
        return self

    @property
    def passed(self) -> bool:
        """Whether all exercises passed."""
        return all(verdict.passed for verdict in self)

    @property
    def texts(self) -> list[str]:
        """Messages below the verdicts' lines."""
        return [*messages(self), *("\n" + wrapped(remark) for remark in self.remarks)]

    def __repr__(self) -> str:
        return "\n".join([*map(line, self), *self.texts])


def line(verdict: Verdict) -> str:
    """Format a verdict in one line."""
    name = exercise(verdict.number).name
    return f"{verdict.number:<6}{name:<24}{verdict.state:<12}{verdict.seconds:6.1f} s"


def messages(verdicts: Iterable[Verdict]) -> list[str]:
    """Collect the messages to the student, each after an empty line; equal ones are joined."""
    said = {}
    for verdict in verdicts:
        text = "" if verdict.passed else verdict.message
        if verdict.note and verdict.state not in ("passed", "not started"):
            text += f"\n  note    {verdict.note}"
        if verdict.printed and verdict.state != "not started":
            lines = verdict.printed.split("\n")
            if verdict.passed and len(lines) > _PRINTED:
                lines[_PRINTED:] = [f"... and {len(lines) - _PRINTED} more lines"]
            text += "\n  printed " + "\n          ".join(lines)
        if text:
            said.setdefault((verdict.state, text.strip("\n")), []).append(verdict.number)
    texts = []
    for (state, text), numbers in said.items():
        name = f" {exercise(numbers[0]).name}" if len(numbers) == 1 else ""
        texts.append(f"\n{', '.join(numbers)}{name}: {state}\n{wrapped(text)}")
    return texts


def wrapped(text: str) -> str:
    """Wrap the lines of a text to a terminal; text after a label stays aligned with it."""
    lines = []
    for long in text.split("\n"):
        indent = " " * 10 if long.startswith("  ") else ""
        parts = [long]
        if len(long) > tables.WIDTH:
            parts = textwrap.wrap(
                long, tables.WIDTH, subsequent_indent=indent, break_on_hyphens=False
            )
        lines += parts
    return "\n".join(lines)


def check(
    what: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    say: Callable[[str], Any] = lambda text: None,
) -> Report:
    """Check a chapter's exercises ("04"), one ("04.2") or "all", and record which pass.

    Parameters
    ----------
    what : str, optional
        Default: the chapters that are begun, and the next one.
    folder : str or PathLike, optional
        The course folder; default: the current folder, or the nearest above it.
    say : callable
        Called with each verdict's line as soon as it is known.

    Returns
    -------
    Report
        The verdicts, which print as a text.

    Raises
    ------
    ValueError
        If there is no such exercise, or no course folder.
    """
    folder, verdicts = find_folder(folder), []
    progress = Progress.load(folder)
    chosen, remarks = (select(what), []) if what is not None else _begun(progress)
    for one in chosen:
        path = student_file(one, folder)
        written = fingerprint(one, path) if path.is_file() else ""
        verdict = grade_file(one, folder)
        before = progress.passed.pop(one.number, None)
        if verdict.passed:
            progress.passed[one.number] = written
        elif verdict.state == "broken" and before is not None:
            progress.passed[one.number] = before  # a broken file does not refute the answer
        if progress.passed.get(one.number) != before:
            progress.save()
        verdicts.append(verdict)
        say(line(verdict))
    shown = {v.note for v in verdicts if v.state not in ("passed", "not started")}
    notes = {f"note  {v.note}": None for v in verdicts if v.note and v.note not in shown}
    return Report(verdicts, [*notes, *remarks, *_complete(verdicts, folder)])


def _begun(progress):
    """Return the exercises of the chapters begun and of the next one, and remarks."""

    def begun(chapter):
        return any(
            one.number in progress.passed or is_begun(one, progress.folder)
            for one in chapter.exercises
        )

    first = [chapter for chapter in CHAPTERS.values() if begun(chapter)]
    next_one = [chapter for chapter in CHAPTERS.values() if chapter not in first][:1]
    chosen = sorted([*first, *next_one], key=lambda chapter: chapter.number)
    which = f"the chapters that are begun ({', '.join(c.number for c in first)}) and " * bool(first)
    remark = "".join(
        f"checked: {which}the next one ({chapter.number}); `tinybnn course check all` checks all"
        for chapter in next_one
    )
    return [one for chapter in chosen for one in chapter.exercises], [remark] * bool(remark)


def _complete(verdicts, folder):
    """Return a remark on the chapters whose exercises have now all passed, if any."""
    progress = status(folder)
    numbers = sorted({verdict.number[:2] for verdict in verdicts if verdict.passed})
    done = [n for n in numbers if not progress["chapters"][n]["open"]]
    done = [n for n in done if all(v.passed for v in verdicts if v.number[:2] == n)]
    if not done:
        return []
    which = f"chapter {done[0]} is" if len(done) == 1 else f"chapters {', '.join(done)} are"
    what_next = progress["next"].removeprefix("tinybnn course check ")
    return [f"{which} complete; {'next: ' + what_next if what_next else 'all is done'}"]


def show(what: str | None = None, folder: str | os.PathLike[str] | None = None) -> None:
    """Print the verdicts on a chapter's exercises, for a notebook; same parameters as `check`."""
    try:
        report = check(what, folder, print)
    except ValueError as error:
        print(error)
        return
    print(*report.texts, sep="\n")


def next_hint(
    number: str, folder: str | os.PathLike[str], level: int | None = None
) -> tuple[int, str]:
    """Return the next hint for an exercise, or the hint of a level, and record it.

    Returns
    -------
    level : int
        Counted from 1.
    text : str
        Empty after the last level.
    """
    one, progress = exercise(number), Progress.load(folder)
    given = progress.hints.get(one.number, 0)
    level = given + 1 if level is None else level
    if level > LEVELS:
        return level, ""
    if level > given:
        progress.hints[one.number] = level
        progress.save()
    return level, one.hints[level - 1]


def run_milestone(
    number: int, folder: str | os.PathLike[str], say: Callable[[str], Any]
) -> tuple[dict[str, Any], Sequence[str]]:
    """Run a milestone with the student's code and record its figures if it is reached.

    Parameters
    ----------
    number : int
    folder : str or PathLike
    say : callable
        Called with the milestone's output, line by line.

    Returns
    -------
    figures : dict
    failed : list of str
        Reasons why it was not reached; empty if it was.
    """
    from tinybnn.course.milestones import MILESTONES

    milestone, progress = MILESTONES[number], Progress.load(folder)
    missing = [n for n in milestone.needs if progress.state(exercise(n)) == "open"]
    if missing:
        return {}, [
            f"it needs exercises that have not passed: {', '.join(missing)}; "
            f"`tinybnn course check {missing[0]}` tells what is missing"
        ]
    target = f"{__name__}:milestone_by_number"
    ended = run_in_child(target, [number], folder, _PATIENCE * milestone.seconds, say)
    if ended.problem:
        return {}, [ended.problem]
    figures, failed = ended.value["figures"], ended.value["failed"]
    if not failed:
        progress.milestones[str(number)] = figures
        progress.save()
    return figures, failed


def milestone_by_number(note: Callable[[str], Any], number: int) -> dict[str, Any]:
    """Run a milestone in the child process."""
    from tinybnn.course.milestones import MILESTONES

    note(f"running milestone {number}")
    outcome = MILESTONES[number].run(True)
    figures = {name: getattr(v, "item", lambda v=v: v)() for name, v in outcome.figures.items()}
    return {"figures": figures, "failed": list(outcome.failed)}


def status(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the student's progress.

    Returns
    -------
    dict
        ``chapters``: for each its exercises' numbers by state (passed, changed, open);
        ``milestones``: for each whether it was reached and which exercises it still needs;
        ``next``: the command to run next.
    """
    from tinybnn.course.milestones import MILESTONES

    progress = Progress.load(folder)
    chapters = {}
    for number, chapter in CHAPTERS.items():
        states = {"passed": [], "changed": [], "open": []}
        for one in chapter.exercises:
            states[progress.state(one)].append(one.number)
        chapters[number] = {"notebooks": list(chapter.notebooks), **states}
    open_ = {n for states in chapters.values() for n in states["open"]}
    milestones = {
        str(number): {
            "title": f"{m.name} ({m.year})",
            "reached": str(number) in progress.milestones,
            "needs": [n for n in m.needs if n in open_],
        }
        for number, m in MILESTONES.items()
    }
    return {"chapters": chapters, "milestones": milestones, "next": _next(chapters, milestones)}


def _next(chapters, milestones):
    changed = [f"tinybnn course check {n}" for c in chapters.values() for n in c["changed"]]
    reachable = [n for n, one in milestones.items() if not (one["reached"] or one["needs"])]
    unlocked = [f"tinybnn course milestone {n}" for n in reachable]
    open_ = [f"tinybnn course check {n}" for c in chapters.values() for n in c["open"]]
    return next(iter(changed + unlocked + open_), "")


def status_text(progress: dict[str, Any]) -> str:
    """Format the result of `status` as two tables and a line."""
    rows = [
        [number, c["notebooks"][0],
         f"{len(c['passed'] + c['changed'])}" + "*" * bool(c["changed"]),
         " ".join(c["changed"]), " ".join(c["open"])]
        for number, c in progress["chapters"].items()
    ]  # fmt: skip
    text = tables.text(["", "chapter", "passed", "edited since", "open"], rows, "<<<<<")
    if any(c["changed"] for c in progress["chapters"].values()):
        text += "\n* passed, file edited since (check again)"
    rows = [
        [number, m["title"], "reached" if m["reached"] else "open", " ".join(m["needs"])]
        for number, m in progress["milestones"].items()
    ]
    if rows:
        text += "\n\n" + tables.text(["", "milestone", "", "needs"], rows, "<<<<")
    return f"{text}\n\nnext: {progress['next'] or 'all is done'}"
