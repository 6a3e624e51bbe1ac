"""What several commands share on the way out: lines for people, figures as JSON."""

from __future__ import annotations

import json
import os
import sys

from tinybnn.storage import printable, write_atomic


def add_json(command):
    command.add_argument(
        "--json", metavar="FILE", help="write the figures to FILE (- for standard output)"
    )


def say_for(options):
    """Where lines for people go: not between the JSON on standard output."""
    stream = sys.stderr if options.json == "-" else sys.stdout
    return lambda text: print("\n".join(map(printable, text.split("\n"))), file=stream, flush=True)


def warn(text):
    """Print a warning, which is for people."""
    print(f"tinybnn: warning: {printable(text)}", file=sys.stderr, flush=True)


def check_outputs(*paths):
    """Refuse to begin what could not be written down."""
    for path in paths:
        folder = os.path.dirname(os.path.abspath(path)) if path else "."
        if path != "-" and not os.path.isdir(folder):
            raise ValueError(f"{path}: there is no folder {folder}")


def write_json(options, figures):
    """Write the figures where ``--json`` says, if it does."""
    if options.json is None:
        return
    text = json.dumps(figures, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        write_atomic(options.json, text.encode())
