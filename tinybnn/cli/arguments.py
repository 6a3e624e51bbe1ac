"""How commands are declared, and the types of their arguments."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tinybnn import datasets
from tinybnn.cli.parser import nearest

# Adds an argument to a parser, or a command to the result of ``add_subparsers``.
Adder: TypeAlias = Callable[[Any], object]
# Runs a command with its options, and returns the exit code, or None for 0.
Run: TypeAlias = Callable[[argparse.Namespace], int | None]

# -------------------------------------------------------------------------------------- commands


def command(
    name: str,
    summary: str,
    description: str,
    *examples: str,
    arguments: Sequence[Adder] = (),
) -> Callable[[Run], Adder]:
    """Declare a command by decorating the function that runs it.

    Parameters
    ----------
    name, summary, description, *examples
        As for `add_command`.
    arguments : sequence of callables
        Each adds an argument to the command's parser; see `argument`.

    Returns
    -------
    callable
        Replaces the function by one that adds the command to the result of ``add_subparsers``.
    """

    def declare(run: Run) -> Adder:
        def add(commands: Any) -> None:
            parser = add_command(commands, name, run, summary, description, *examples)
            for add_argument in arguments:
                add_argument(parser)

        return add

    return declare


def group(*texts: str, members: Sequence[Adder]) -> Adder:
    """Declare a command that only leads to further ones; the texts are those of `add_group`."""

    def add(commands: Any) -> None:
        place = add_group(commands, *texts)
        for add_member in members:
            add_member(place)

    return add


def argument(*names: str, **settings: Any) -> Adder:
    """Declare an argument, with the parameters of ``ArgumentParser.add_argument``."""
    return lambda parser: parser.add_argument(*names, **settings)


def add_command(
    commands: Any,
    name: str,
    run: Run,
    summary: str,
    description: str,
    *examples: str,
) -> argparse.ArgumentParser:
    """Add a command with a help text.

    Parameters
    ----------
    commands : object
        The result of ``add_subparsers``.
    name : str
    run : callable
        Options -> exit code, or None for 0. The options include the command's parser, for errors
        that depend on several of them.
    summary : str
        One line for the list of commands.
    description : str
        For the command's own help, which keeps its line breaks.
    *examples : str

    Returns
    -------
    argparse.ArgumentParser
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=run, parser=parser)
    return parser


def add_group(
    commands: Any,
    name: str,
    members: str,
    summary: str,
    description: str,
    example: str,
    **options: Any,
) -> Any:
    """Add a command that only leads to further ones; return where `add_command` adds these.

    `members` names them in the help; the options are those of ``add_subparsers``.
    """
    group = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example: {example}",
        allow_abbrev=False,
    )
    return group.add_subparsers(required=True, metavar=members, **options)


def add_dataset(command: argparse.ArgumentParser, text: str, default: str | None = None) -> None:
    command.add_argument("--dataset", type=dataset, default=default, metavar="D", help=text)


def add_threads(
    command: argparse.ArgumentParser, text: str = "(one a core); the result is the same"
) -> None:
    command.add_argument("--threads", type=threads, metavar="N", help=text)


def given(options: argparse.Namespace, config: type) -> dict[str, Any]:
    """Return the options that were given (not None) and are fields of a dataclass."""
    names = {field.name for field in dataclasses.fields(config)}
    return {k: v for k, v in vars(options).items() if k in names and v is not None}


# ------------------------------------------------------------------------------- types of arguments


def threads(text: str) -> int:
    """Parse a number of threads, at most one for each core."""
    from tinybnn.kernels.machine.threads import most

    whole(1)(text)  # without the number of cores, if it is no number
    return whole(1, most())(text)


def dataset(text: str) -> str:
    """Check the name of a data set."""
    known = datasets.SOURCES
    if text not in known:
        raise argparse.ArgumentTypeError(
            f"unknown data set {text!r}{nearest(text, known)}, choose from {', '.join(known)}"
        )
    return text


def whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    """Make a parser of integers from `low` to `high`."""
    span = f">= {low}" if high == math.inf else f"from {low} to {high}"
    return _parser(int, lambda value: low <= value <= high, f"a whole number {span}")


def number(low: float, high: float = math.inf, span: str | None = None) -> Callable[[str], float]:
    """Make a parser of finite numbers from `low` to below `high`; `span` describes the range."""
    if span is None:
        span = f">= {low}" if high == math.inf else f"from {low} to below {high}"
    return _parser(float, lambda value: low <= value < high, f"a number {span}")


def _parser(convert, is_valid, expected):
    """Make a parser of values that raises an error with what was expected."""

    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"expects {expected}, got {text!r}")
        return value

    return parse


_SMALLEST, _ABOVE_ONE = 5e-324, 1.0000000000000002  # the floats next to 0 and 1

above_zero: Callable[[str], float] = number(_SMALLEST, span="above 0")
share: Callable[[str], float] = number(0, _ABOVE_ONE, span="from 0 to 1")


def widths(text: str) -> list[int]:
    """Parse integers separated by commas, such as widths of layers."""
    return _whole_numbers(text, "256,256")


def shape(text: str) -> list[int]:
    """Parse the shape of a sample."""
    return _whole_numbers(text, "1,28,28")


def _whole_numbers(text, example):
    try:
        return [whole(1)(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expects whole numbers >= 1 with commas between, such as {example}, got {text!r}"
        ) from None


def address(text: str) -> str:
    """Check an address of the web."""
    if not text.lower().startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(
            f"expects an address that begins with http:// or https://, got {text!r}"
        )
    return text
