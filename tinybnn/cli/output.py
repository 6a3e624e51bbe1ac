"""Output that commands share: lines of text, and figures as JSON."""

from __future__ import annotations

import argparse
import codecs
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from tinybnn.storage import printable, write_atomic

# ----------------------------------------------------------------------------------------- streams

_ASCII = {
    "×": "x", "±": "+-", "µ": "u", "→": "->", "≥": ">=", "≤": "<=", "–": "-", "…": "...",
}  # fmt: skip


def prepare_streams() -> None:
    """Let standard output and error accept any text, in spite of the terminal's encoding."""
    codecs.register_error("tinybnn", _in_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when the process started
            setattr(sys, name, io.StringIO())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="tinybnn")


def _in_ascii(error):
    """Replace characters that an encoding lacks by similar ASCII, or by Python's escapes."""
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or ascii(c)[1:-1] for c in text), error.end


def say_for(options: argparse.Namespace) -> Callable[[str], None]:
    """Return a function that prints lines for people, apart from JSON on standard output."""
    stream = sys.stderr if options.json == "-" else sys.stdout
    return lambda text: print("\n".join(map(printable, text.split("\n"))), file=stream, flush=True)


def tell(text: str) -> None:
    """Print a message about progress on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    tell(f"tinybnn: warning: {text}")


# ----------------------------------------------------------------------------------- files to write


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json", metavar="FILE", help="write the figures to FILE (- for standard output)"
    )


def check_outputs(
    options: argparse.Namespace, *names: str, inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Fail early if an output file cannot be written.

    Parameters
    ----------
    options : Namespace
    *names : str
        Options whose values are files to write, or None.
    inputs : sequence of paths
        Files that the command reads. No output may be one of these, nor may two be the same.
    """
    taken = {os.path.realpath(path): "belongs to what this command reads" for path in inputs}
    for name in names:
        path, option = getattr(options, name), f"argument --{name}"
        if path is None or (path == "-" and name == "json"):
            continue
        if path in ("", "-"):
            options.parser.error(f"{option}: expects the name of a file, got {path!r}")
        where = os.path.realpath(path)
        if where in taken:
            options.parser.error(f"{option}: {path} {taken[where]}; choose another file")
        taken[where] = f"is the file of --{name}"
        _check_file(path)


def _check_file(path):
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder, expected the name of a file to write")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is a device or a pipe, expected the name of a file to write")
    if not os.path.isdir(folder):
        raise ValueError(f"{path}: there is no folder {folder}; make it first")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise ValueError(f"{path}: no permission to write there; choose another place")


def check_picture(options: argparse.Namespace, name: str) -> None:
    """Report a picture's file whose ending is no known format."""
    from matplotlib.backend_bases import FigureCanvasBase

    path = getattr(options, name)
    ending = os.path.splitext(path)[1][1:].lower()
    if ending and ending not in FigureCanvasBase.get_supported_filetypes():
        options.parser.error(
            f"argument --{name}: {path} ends in .{ending}, expected .png, .svg or .pdf"
        )


def check_folder(options: argparse.Namespace, name: str) -> None:
    """Fail early if the folder that an option names cannot be made or written into."""
    path = getattr(options, name)
    if not path:
        options.parser.error(f"argument --{name}: expects the name of a folder, got {path!r}")
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise ValueError(f"{path}: {there} is a file, expected a folder; choose another name")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: no permission to write in {there}; choose another place")


def write_json(options: argparse.Namespace, figures: Any) -> None:
    """Write the figures to the file of ``--json``, if it was given."""
    if options.json is None:
        return
    text = json.dumps(figures, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        write_atomic(options.json, text.encode())
