"""``tinybnn course``: notebooks with exercises that check themselves, and what is built in them."""

from __future__ import annotations

import argparse
import os

from tinybnn.cli.arguments import add_command, add_group, whole
from tinybnn.cli.output import add_json, check_folder, check_outputs, say_for, write_json


def add_course(commands):
    actions = add_group(
        commands,
        "course",
        "ACTION",
        "learn how binary networks work, and write your own",
        "A course in notebooks. You write a package of your own, mybnn, exercise by exercise; the\n"
        "commands check it, give hints, and run milestones of the field's history with it.",
        "tinybnn course start FOLDER",
    )
    _add_start(actions)
    _add_status(actions)
    _add_check(actions)
    _add_hint(actions)
    _add_milestone(actions)


def _add_folder(command):
    command.add_argument(
        "--folder", metavar="DIR", help="the course folder (the current one, or one above it)"
    )
    add_json(command)


def _add_start(actions):
    start = add_command(
        actions,
        "start",
        _start,
        "copy the notebooks, the exercise files and the data into a folder",
        "Copy the notebooks, the files of the exercises (mybnn/*.py) and the digits into FOLDER.\n"
        "In a folder of the course it brings what is missing; your work stays as it is.",
        "tinybnn course start bnn-course",
    )
    start.add_argument("folder", metavar="FOLDER")
    add_json(start)


def _start(options):
    from tinybnn.course.catalogue import CHAPTERS
    from tinybnn.course.folder import start

    check_outputs(options, "json")
    check_folder(options, "folder")
    copied, kept = start(options.folder)
    say = say_for(options)
    files = f"{len(copied)} files copied" + (f", {len(kept)} kept as they are" if kept else "")
    say(f"{options.folder}: {files}")
    inside = "." if os.path.realpath(options.folder) == os.getcwd() else options.folder
    if inside != ".":
        say(f"folder      cd {inside}")
    first = next((name for name in sorted(copied + kept) if name.endswith(".ipynb")), "")
    say(f"notebooks   jupyter lab {first}  (pip install 'tinybnn[tutorials]' brings it)")
    say(f"exercises   edit mybnn/*.py, then tinybnn course check {next(iter(CHAPTERS))}")
    say("            (each is checked by itself, with right versions of the others)")
    say("progress    tinybnn course status")
    write_json(options, {"folder": options.folder, "copied": copied, "kept": kept})


def _add_status(actions):
    status = add_command(
        actions,
        "status",
        _status,
        "show which exercises passed, which milestones were reached, and what is next",
        "Show for each chapter which exercises passed, whose file was edited since then and what\n"
        "is open; the milestones; and what is next. Nothing is checked anew.",
        "tinybnn course status",
    )
    _add_folder(status)


def _status(options):
    from tinybnn.course import report
    from tinybnn.course.folder import find_folder

    check_outputs(options, "json")
    found = report.status(find_folder(options.folder))
    say_for(options)(report.status_text(found))
    write_json(options, found)


def _add_check(actions):
    check = add_command(
        actions,
        "check",
        _check,
        "check your answers",
        "Check a chapter (04), an exercise (04.2) or all; without argument, the chapters that you\n"
        "have begun and the next one. Each exercise runs in a process of its own, with right\n"
        "versions of the others. The exit code is 0 if all of them passed. The checks protect\n"
        "against mistakes: they run your code with limits on time and memory and without network,\n"
        "but they are no sandbox.",
        "tinybnn course check",
        "tinybnn course check 00",
        "tinybnn course check 00.1",
        "tinybnn course check all",
    )
    check.add_argument("what", nargs="?", type=_exercises, metavar="NN|NN.E|all")
    _add_folder(check)


def _check(options):
    from tinybnn.course import report

    check_outputs(options, "json")
    say = say_for(options)
    found = report.check(options.what, options.folder, say)
    for text in found.texts:
        say(text)
    write_json(options, [verdict.to_dict() for verdict in found])
    return 0 if found.passed else 1


def _add_hint(actions):
    hint = add_command(
        actions,
        "hint",
        _hint,
        "give the next hint for an exercise",
        "Give the next hint for an exercise. There are three, from a nudge to nearly the way.",
        "tinybnn course hint 00.1",
        "tinybnn course hint 00.1 --level 1",
    )
    hint.add_argument("exercise", type=_exercise, metavar="NN.E")
    hint.add_argument("--level", type=_level, metavar="N", help="1, 2 or 3 (the next one)")
    _add_folder(hint)


def _hint(options):
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


def _add_milestone(actions):
    milestone = add_command(
        actions,
        "milestone",
        _milestone,
        "run a milestone of the field's history with your code inside",
        "Train and judge a network of the field's history, made of your own pieces. The exit code\n"
        "is 0 if the milestone was reached.",
        "tinybnn course milestone 1",
    )
    milestone.add_argument("number", type=whole(1), metavar="N")
    _add_folder(milestone)


def _milestone(options):
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


def _exercises(text):
    _checked(text, "select")
    return text


def _exercise(text):
    return _checked(text, "exercise").number


def _checked(text, function):
    from tinybnn.course import catalogue

    try:
        return getattr(catalogue, function)(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _level(text):
    from tinybnn.course.folder import LEVELS

    value = whole(1)(text)
    if value > LEVELS:
        raise argparse.ArgumentTypeError(f"expects a whole number from 1 to {LEVELS}, got {text!r}")
    return value
