"""``tinybnn course``: notebooks with exercises that check themselves, and milestones."""

from __future__ import annotations

import argparse
import os

from tinybnn.cli.arguments import Adder, above_zero, argument, command, group, whole
from tinybnn.cli.output import add_json, check_folder, check_outputs, say_for, write_json


def _exercises(text):
    _parsed(text, "select")
    return text


def _exercise(text):
    return _parsed(text, "exercise").number


def _parsed(text, function):
    from tinybnn.course import catalogue

    try:
        return getattr(catalogue, function)(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _level(text):
    from tinybnn.course.folder import LEVELS

    return whole(1, LEVELS)(text)


_folder = argument(
    "--folder", metavar="DIR", help="the course folder (the current one, or one above it)"
)


@command(
    "start",
    "copy the notebooks, the exercise files and the data into a folder",
    "Copy the notebooks, the files of the exercises (mybnn/*.py) and the digits into FOLDER.\n"
    "In an existing course folder it adds what is missing; your work does not change.",
    "tinybnn course start bnn-course",
    arguments=[argument("folder", metavar="FOLDER"), add_json],
)
def start(options):
    from tinybnn.course.catalogue import CHAPTERS
    from tinybnn.course.folder import start

    check_outputs(options, "json")
    check_folder(options, "folder")
    copied, kept = start(options.folder)
    say = say_for(options)
    files = f"{len(copied)} files copied" + (f", {len(kept)} kept as they are" if kept else "")
    say(f"{options.folder}: {files}")
    if os.path.realpath(options.folder) != os.getcwd():
        say(f"folder      cd {options.folder}")
    first = next((name for name in sorted(copied + kept) if name.endswith(".ipynb")), "")
    say(f"notebooks   jupyter lab {first}  (pip install 'tinybnn[tutorials]' brings it)")
    say(f"exercises   edit mybnn/*.py, then tinybnn course check {next(iter(CHAPTERS))}")
    say("            (each is checked alone, with correct versions of the others)")
    say("progress    tinybnn course status")
    write_json(options, {"folder": options.folder, "copied": copied, "kept": kept})


@command(
    "status",
    "show which exercises passed, which milestones were reached, and what is next",
    "Show for each chapter which exercises passed, which files were edited since then and\n"
    "which exercises are open; the milestones; and what is next. Nothing is checked again.",
    "tinybnn course status",
    arguments=[_folder, add_json],
)
def status(options):
    from tinybnn.course import report
    from tinybnn.course.folder import find_folder

    check_outputs(options, "json")
    figures = report.status(find_folder(options.folder))
    say_for(options)(report.status_text(figures))
    write_json(options, figures)


@command(
    "check",
    "check your answers",
    "Check a chapter (04), an exercise (04.2) or all; without argument, the chapters that you\n"
    "have begun and the next one. Each exercise runs in its own process, with correct versions\n"
    "of the others. The exit code is 0 if all of them passed. The checks protect against\n"
    "mistakes: they run your code with limits on time and memory and without network, but they\n"
    "are no sandbox.",
    "tinybnn course check",
    "tinybnn course check 00",
    "tinybnn course check 00.1",
    "tinybnn course check all",
    arguments=[
        argument("selection", nargs="?", type=_exercises, metavar="NN|NN.E|all"), _folder, add_json
    ],
)  # fmt: skip
def check(options):
    from tinybnn.course import report

    check_outputs(options, "json")
    say = say_for(options)
    verdicts = report.check(options.selection, options.folder, say)
    for text in verdicts.texts:
        say(text)
    write_json(options, [verdict.to_dict() for verdict in verdicts])
    return 0 if verdicts.passed else 1


@command(
    "hint",
    "give the next hint for an exercise",
    "Give the next hint for an exercise. There are three, from a nudge to nearly the answer.",
    "tinybnn course hint 00.1",
    "tinybnn course hint 00.1 --level 1",
    arguments=[
        argument("exercise", type=_exercise, metavar="NN.E"),
        argument("--level", type=_level, metavar="N", help="1, 2 or 3 (the next one)"),
        _folder,
        add_json,
    ],
)
def hint(options):
    from tinybnn.course import report
    from tinybnn.course.folder import LEVELS, find_folder

    check_outputs(options, "json")
    folder = find_folder(options.folder)
    level, text = report.next_hint(options.exercise, folder, options.level)
    say = say_for(options)
    if text:
        say(report.wrapped(f"{options.exercise}, hint {level} of {LEVELS}: {text}"))
    else:
        say(f"{options.exercise}: all {LEVELS} hints were given; --level 1 to {LEVELS} repeats one")
    write_json(options, {"exercise": options.exercise, "level": level, "hint": text})


@command(
    "milestone",
    "run a milestone of the field's history with your code inside",
    "Train and judge a network of the field's history that uses your code. The exit code is 0\n"
    "if the milestone was reached.",
    "tinybnn course milestone 1",
    arguments=[argument("number", type=whole(1), metavar="N"), _folder, add_json],
)
def milestone(options):
    from tinybnn.course import report
    from tinybnn.course.folder import find_folder
    from tinybnn.course.milestones import MILESTONES

    check_outputs(options, "json")
    if options.number not in MILESTONES:
        numbers = ", ".join(map(str, MILESTONES))
        options.parser.error(f"argument N: expects one of {numbers}, got {options.number}")
    milestone, say = MILESTONES[options.number], say_for(options)
    folder = find_folder(options.folder)
    say(f"{options.number}  {milestone.name} ({milestone.year}): {milestone.title}")
    figures, failed = report.run_milestone(options.number, folder, say)
    for name, value in figures.items():
        say(f"{name:<40}{value}")
    for text in failed:
        say(report.wrapped(f"not reached: {text}"))
    if not failed:
        say("reached")
    write_json(options, {"milestone": options.number, "figures": figures, "failed": failed})
    return 1 if failed else 0


def _due(text):
    from tinybnn.course.submissions import parse_time

    try:
        return parse_time(text, end_of_day=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@command(
    "grade",
    "grade the work of a class",
    "Grade SUBMISSIONS, a folder with a folder for each student, which holds mybnn/ or the files\n"
    "of it. Write a table of points, a report for each student, and a summary of the class.\n"
    "Each exercise runs in its own process on a copy of the files, as with `tinybnn course\n"
    "check`. What was graded before is graded anew only if the files have changed.",
    "tinybnn course grade SUBMISSIONS --csv grades.csv",
    "tinybnn course grade SUBMISSIONS --csv week1.csv --only 00 --due 2026-10-16",
    "tinybnn course grade SUBMISSIONS --csv grades.csv --rubric rubric.json",
    arguments=[
        argument("submissions", metavar="SUBMISSIONS"),
        argument("--csv", metavar="FILE", required=True, help="the table to write"),
        argument(
            "--reports", metavar="DIR", help="the folder of reports (FILE-reports, beside FILE)"
        ),
        argument("--rubric", metavar="FILE", help="points as JSON (one for each exercise)"),
        argument(
            "--only", action="append", type=_exercises, metavar="NN|NN.E",
            help="grade this chapter or exercise; may be given several times (all)",
        ),
        argument("--due", type=_due, metavar="TIME", help="a date or time; report who was later"),
        argument(
            "--seconds", type=above_zero, metavar="S",
            help="time limit for an exercise (its own, mostly 30)",
        ),
        argument("--again", action="store_true", help="grade anew what was graded before"),
        add_json,
    ],
)  # fmt: skip
def grade(options):
    from tinybnn.course import grades
    from tinybnn.course.catalogue import select
    from tinybnn.course.rubric import read_rubric
    from tinybnn.course.submissions import students

    inputs = [] if options.rubric is None else [options.rubric]
    check_outputs(options, "csv", "json", inputs=inputs)
    if options.reports is None:
        options.reports = os.path.splitext(options.csv)[0] + "-reports"
    check_folder(options, "reports")
    points, say = read_rubric(options.rubric), say_for(options)
    if options.only is not None:
        chosen = {one.number for what in options.only for one in select(what)}
        points = {number: value for number, value in points.items() if number in chosen}
    if not points:
        options.parser.error("argument --only: the rubric gives no points for what was chosen")
    found = grades.grade_class(
        options.submissions, options.reports, options.csv, points, options.due, options.seconds,
        options.again, lambda one: say(grades.line(one)),
    )  # fmt: skip
    if others := students(options.submissions)[1]:
        say(f"\nno folders, left out: {', '.join(others)}")
    say(f"\n{len(found)} students; {options.csv}, {os.path.join(options.reports, 'summary.md')}")
    write_json(options, [one.to_dict() for one in found])


course: Adder = group(
    "course",
    "ACTION",
    "learn how binary networks work, and write your own",
    "A course in notebooks. You write your own package, mybnn, exercise by exercise; the\n"
    "commands check it, give hints, and run milestones of the field's history with it.",
    "tinybnn course start FOLDER",
    members=[start, status, check, hint, milestone, grade],
)
