"""The command line: it parses arguments and prints results; the library does the work.

A file holds a group of commands, each declared beside the function that runs it. A command imports
the parts of the library that it needs when it runs, so that ``tinybnn --help`` is fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import tinybnn
from tinybnn.cli import bench, course, data, demo, federated, reproduce, runs, warm_up
from tinybnn.cli.output import prepare_streams
from tinybnn.cli.parser import Parser
from tinybnn.storage import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code (0 done, 1 failed, 2 wrong arguments)."""
    prepare_streams()
    try:
        try:
            return _run(arguments)
        finally:
            _flush()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
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
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unexpected {', '.join(map(repr, unknown))}")
    return options.command(options) or 0


def _flush():
    """Flush standard output; if that fails, keep Python from flushing it again on exit."""
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
        demo.demo, course.course, data.data, runs.train, runs.compile, runs.verify, runs.predict,
        runs.summary, bench.bench, warm_up.warm_up, reproduce.add_reproduce, federated.federated,
    ):  # fmt: skip
        add(commands)
    return parser
