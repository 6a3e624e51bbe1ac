"""Check exercises one after the other, remember which passed, and put the verdicts into words."""

from __future__ import annotations

import textwrap

from tinybnn import tables
from tinybnn.course.catalogue import CHAPTERS, exercise, select, student_file
from tinybnn.course.folder import LEVELS, Progress, find_folder, fingerprint
from tinybnn.course.grading import Verdict, grade_file
from tinybnn.course.process import run_in_child

_PATIENCE = 5  # times as long as a milestone takes with good answers on one core


class Report(tuple):
    """Verdicts; printed, a line for each and then what there is to say.

    Examples
    --------
    >>> print(Report([Verdict("00.1", "passed", seconds=1.0)]))
    00.1  sign                    passed         1.0 s
    """

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self)

    def __repr__(self):
        return "\n".join([*map(line, self), *messages(self)])


def line(verdict: Verdict) -> str:
    """A verdict in one line."""
    name = exercise(verdict.number).name
    return f"{verdict.number:<6}{name:<24}{verdict.state:<12}{verdict.seconds:6.1f} s"


def messages(verdicts):
    """What verdicts say to the student, each after an empty line."""
    texts = []
    for verdict in verdicts:
        text = "" if verdict.passed else verdict.message
        if verdict.printed and verdict.state != "not started":
            text += "\n  printed " + verdict.printed.replace("\n", "\n          ")
        if text:
            name = exercise(verdict.number).name
            title = f"\n{verdict.number} {name}: {verdict.state}\n"
            texts.append(title + wrapped(text.strip("\n")))
    return texts


def wrapped(text):
    """A text whose lines fit into a terminal; what is behind a label stays behind it."""
    lines = []
    for long in text.split("\n"):
        indent = " " * 10 if long.startswith("  ") else ""
        fits = len(long) <= tables.WIDTH
        lines += [long] if fits else textwrap.wrap(long, tables.WIDTH, subsequent_indent=indent)
    return "\n".join(lines)


def check(what: str = "all", folder=None, say=lambda text: None) -> Report:
    """Check a chapter's exercises ("04"), one ("04.2") or all; what passes is remembered.

    Parameters
    ----------
    what : str
    folder : str or PathLike, optional
        The course folder; by default the current one, or the nearest above it.
    say : callable
        Gets each verdict's line as soon as it is known.

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
    for one in select(what):
        path = student_file(one, folder)
        written = fingerprint(one, path) if path.is_file() else ""
        verdict = grade_file(one, folder)
        before = progress.passed.pop(one.number, None)
        if verdict.passed:
            progress.passed[one.number] = written
        if progress.passed.get(one.number) != before:
            progress.save()
        verdicts.append(verdict)
        say(line(verdict))
    return Report(verdicts)


def show(what: str = "all", folder=None):
    """Print the verdicts on a chapter's exercises, for a notebook; same parameters as `check`."""
    try:
        report = check(what, folder, print)
    except ValueError as error:
        print(error)
        return
    print(*messages(report), sep="\n")


def next_hint(number: str, folder, level: int | None = None):
    """The next hint for an exercise, or the one of a level.

    Returns
    -------
    level : int
        From 1.
    text : str
        Empty if all levels were given.
    """
    one, progress = exercise(number), Progress.load(folder)
    given = progress.hints.get(number, 0)
    level = given + 1 if level is None else level
    if level > LEVELS:
        return level, ""
    if level > given:
        progress.hints[number] = level
        progress.save()
    return level, one.hints[level - 1]


def run_milestone(number: int, folder, say):
    """Run a milestone with the student's code; what it reaches is remembered.

    Parameters
    ----------
    number : int
    folder : str or PathLike
    say : callable
        Gets what the milestone prints, line by line.

    Returns
    -------
    figures : dict
    failed : list of str
        Why it was not reached; empty if it was.
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


def milestone_by_number(note, number):
    """In the child: run a milestone."""
    from tinybnn.course.milestones import MILESTONES

    note(f"running milestone {number}")
    outcome = MILESTONES[number].run(True)
    figures = {name: getattr(v, "item", lambda v=v: v)() for name, v in outcome.figures.items()}
    return {"figures": figures, "failed": list(outcome.failed)}


def status(folder):
    """How far a student is.

    Returns
    -------
    dict
        ``chapters``: for each its exercises' numbers by state (passed, changed, open);
        ``milestones``: for each whether it was reached and which exercises it still needs;
        ``next``: what to do next, a command.
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


def status_text(found):
    """What `status` found, as two tables and a line."""
    rows = [
        [number, c["notebooks"][0], f"{len(c['passed'])}", " ".join(c["changed"]),
         " ".join(c["open"])]
        for number, c in found["chapters"].items()
    ]  # fmt: skip
    text = tables.text(["", "chapter", "passed", "changed since", "open"], rows, "<<><<")
    rows = [
        [number, m["title"], "reached" if m["reached"] else "open", " ".join(m["needs"])]
        for number, m in found["milestones"].items()
    ]
    if rows:
        text += "\n\n" + tables.text(["", "milestone", "", "needs"], rows, "<<<<")
    return f"{text}\n\nnext: {found['next'] or 'all is done'}"
