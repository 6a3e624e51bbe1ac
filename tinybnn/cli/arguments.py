"""What several commands share on the way in: how a command is declared, and types of values."""

from __future__ import annotations

import argparse

from tinybnn import datasets
from tinybnn.cli.parser import nearest


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


def add_group(commands, name, members, summary, description, example, **options):
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
    return group.add_subparsers(required=True, metavar=members, **options)


def add_dataset(command, text, default=None):
    command.add_argument("--dataset", type=dataset, default=default, metavar="D", help=text)


def add_threads(command, text="(one a core); the result is the same"):
    command.add_argument("--threads", type=threads, metavar="N", help=text)


def threads(text):
    """A number of threads that there can be."""
    value = whole(1)(text)
    from tinybnn.kernels.machine.threads import most

    if value > most():
        raise argparse.ArgumentTypeError(
            f"expects a whole number from 1 to {most()}, one thread a core, got {text!r}"
        )
    return value


def dataset(text):
    """The name of a data set."""
    known = datasets.SOURCES
    if text not in known:
        raise argparse.ArgumentTypeError(
            f"unknown data set {text!r}{nearest(text, known)}, choose from {', '.join(known)}"
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


def number(low, high=None, span=None):
    """The type of finite numbers from `low` to below `high`; `span` says so in other words."""
    if span is None:
        span = f">= {low}" if high is None else f"from {low} to below {high}"

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low <= value < (float("inf") if high is None else high)):
            raise argparse.ArgumentTypeError(f"expects a number {span}, got {text!r}")
        return value

    return parse


_SMALLEST, _BEHIND_ONE = 5e-324, 1.0000000000000002  # the float numbers next to 0 and 1

above_zero = number(_SMALLEST, span="above 0")
share = number(0, _BEHIND_ONE, span="from 0 to 1")


def widths(text):
    """Whole numbers with commas between."""
    return _whole_numbers(text, "256,256")


def shape(text):
    """The shape of a sample."""
    return _whole_numbers(text, "1,28,28")


def _whole_numbers(text, example):
    try:
        return [whole(1)(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expects whole numbers >= 1 with commas between, such as {example}, got {text!r}"
        ) from None


def address(text):
    """An address of the web."""
    if not text.lower().startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(
            f"expects an address that begins with http:// or https://, got {text!r}"
        )
    return text
