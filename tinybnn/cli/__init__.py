"""The command line: arguments in, printing out; the work is done by the library.

A file holds a group of commands, each with its arguments beside what it does. What a command needs
of the library is imported when it runs, so that ``tinybnn --help`` waits for nothing.
"""

from __future__ import annotations

import argparse
import os
import sys

import tinybnn
from tinybnn.cli.bench import add_bench
from tinybnn.cli.data import add_data
from tinybnn.cli.demo import add_demo
from tinybnn.cli.federated import add_federated
from tinybnn.cli.reproduce import add_reproduce
from tinybnn.cli.runs import add_compile, add_predict, add_summary, add_train, add_verify
from tinybnn.storage import printable


def main(arguments=None):
    """Run a command; returns the exit code (0 done, 1 failed, 2 wrong arguments)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        code = options.command(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of a pipe, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"tinybnn: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tinybnn: interrupted", file=sys.stderr)
        return 130


_MOST = 4000  # characters of an error, which may quote a file


def _one_line(error):
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return printable(f"{error.filename}: {error.strerror}")
    lines = [line.strip() for line in str(error).splitlines()]
    text = "; ".join(lines).replace(":; ", ": ")
    return printable(text if len(text) <= _MOST else f"{text[:_MOST]} ...")


class _Parser(argparse.ArgumentParser):
    """An error is one line that says what to do."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _parser():
    parser = _Parser(
        prog="tinybnn",
        description="Binary neural networks from scratch, run on packed bits.",
        epilog="example: tinybnn demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tinybnn {tinybnn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_demo, add_data, add_train, add_compile, add_verify, add_predict, add_summary,
        add_bench, add_reproduce, add_federated,
    ):  # fmt: skip
        add(commands)
    return parser
