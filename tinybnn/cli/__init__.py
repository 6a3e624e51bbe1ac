"""The command line: arguments in, printing out; the work is done by the library.

A file holds a group of commands, each with its arguments beside what it does. What a command needs
of the library is imported when it runs, so that ``tinybnn --help`` waits for nothing.
"""

from __future__ import annotations

import os
import sys

import tinybnn
from tinybnn.cli.bench import add_bench
from tinybnn.cli.course import add_course
from tinybnn.cli.data import add_data
from tinybnn.cli.demo import add_demo
from tinybnn.cli.federated import add_federated
from tinybnn.cli.output import prepare_streams
from tinybnn.cli.parser import Parser
from tinybnn.cli.reproduce import add_reproduce
from tinybnn.cli.runs import add_compile, add_predict, add_summary, add_train, add_verify
from tinybnn.cli.warm_up import add_warm_up
from tinybnn.storage import printable


def main(arguments=None):
    """Run a command; returns the exit code (0 done, 1 failed, 2 wrong arguments)."""
    prepare_streams()
    try:
        try:
            return _run(arguments)
        finally:
            _flush()
    except BrokenPipeError:  # the reader of a pipe, say `head`, has seen enough
        return 1
    except MemoryError as error:
        print(f"tinybnn: {_one_line(f'not enough memory ({error}); choose less')}", file=sys.stderr)
        return 1
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"tinybnn: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tinybnn: interrupted", file=sys.stderr)
        return 130


def _run(arguments):
    options, more = _parser().parse_known_args(arguments)
    if more:
        options.parser.error(f"unexpected {', '.join(map(repr, more))}")
    return options.command(options) or 0


def _flush():
    """Flush standard output; where that fails, Python shall not try it again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


_MOST = 4000  # characters of an error, which may quote a file


def _one_line(error):
    if isinstance(error, OSError) and error.strerror:
        where = "standard output" if error.filename is None else error.filename
        return printable(f"{where}: {error.strerror}")
    lines = [line.strip() for line in str(error).splitlines()]
    text = "; ".join(lines).replace(":; ", ": ")
    return printable(text if len(text) <= _MOST else f"{text[:_MOST]} ...")


def _parser():
    parser = Parser(
        prog="tinybnn",
        description="Binary neural networks from scratch, run on packed bits.",
        epilog="example: tinybnn demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tinybnn {tinybnn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_demo, add_course, add_data, add_train, add_compile, add_verify, add_predict,
        add_summary, add_bench, add_warm_up, add_reproduce, add_federated,
    ):  # fmt: skip
        add(commands)
    return parser
