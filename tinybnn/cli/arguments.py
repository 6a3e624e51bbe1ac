"""What several commands share on the way in: how a command is declared, and types of values."""

from __future__ import annotations

import argparse

from tinybnn import datasets


def add_command(commands, name, run, summary, description, *examples):
    """A command with a help text; `run` gets its options.

    Parameters
    ----------
    commands : object
        Of ``add_subparsers``.
    name : str
    run : callable
        Options -> exit code, or None for 0. The command's own parser is among the options, for
        errors that show only when several of them are seen together.
    summary : str
        One line for the list of commands.
    description : str
        For the command's own help, which keeps its line breaks.
    *examples : str

    Returns
    -------
    argparse.ArgumentParser
    """
    command = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(command=run, parser=command)
    return command


def add_group(commands, name, members, summary, description, example):
    """A command that only leads to further ones; returns where `add_command` adds these.

    `members` is what the help calls one of them.
    """
    group = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example: {example}",
        allow_abbrev=False,
    )
    return group.add_subparsers(required=True, metavar=members)


def add_dataset(command, text, default=None):
    command.add_argument("--dataset", type=dataset, default=default, metavar="D", help=text)


def add_threads(command):
    command.add_argument(
        "--threads", type=whole(1), metavar="N", help="(one a core); the result is the same"
    )


def dataset(text):
    """The name of a data set."""
    known = datasets.SOURCES
    if text not in known:
        raise argparse.ArgumentTypeError(
            f"unknown data set {text!r}, choose from {', '.join(known)}"
        )
    return text


def whole(low):
    """The type of whole numbers from `low`."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"expects a whole number >= {low}, got {text!r}")
        return value

    return parse


def number(low, high=None):
    """The type of finite numbers from `low` to below `high`."""

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low <= value < (float("inf") if high is None else high)):
            span = f">= {low}" if high is None else f"from {low} to below {high}"
            raise argparse.ArgumentTypeError(f"expects a number {span}, got {text!r}")
        return value

    return parse


def share(text):
    """A number from 0 to 1."""
    return 1.0 if text in ("1", "1.0") else number(0, 1)(text)


def widths(text):
    """Whole numbers with commas between."""
    try:
        return [whole(1)(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expects whole numbers with commas between, such as 256,256, got {text!r}"
        ) from None
