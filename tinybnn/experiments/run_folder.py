"""The folder of an experiment: its configuration, figures that are kept, and the report's text.

An experiment is a chain of steps, each of which leaves a file. Repeating the call that started it
skips what has its file, wherever it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap

from tinybnn.storage import write_atomic


def kept(path, compute):
    """What a JSON file holds; without the file, what `compute` gives, which is written to it."""
    if not path.exists():
        write_json(path, compute())
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, value):
    """Write figures, atomically."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def open_folder(out, config):
    """Make the folder of a run, or check that it is one with the same configuration."""
    path = out / "config.json"
    if not path.exists():
        if out.is_dir() and any(not p.name.startswith(".") for p in out.iterdir()):
            raise ValueError(f"{out} holds files, but no run; choose a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, dataclasses.asdict(config))
        return
    old, new = json.loads(path.read_text(encoding="utf-8")), dataclasses.asdict(config)
    if different := [name for name in new if old.get(name) != new[name]]:
        was = ", ".join(f"{name}={json.dumps(old.get(name))}" for name in different)
        now = ", ".join(f"{name}={json.dumps(new[name])}" for name in different)
        raise ValueError(
            f"{out} is a run with {was}, not {now}; repeat its own settings, "
            "or choose another folder"
        )


# ------------------------------------------------------------------------------------ the report


def wrapped(*paragraphs):
    """Paragraphs, or items of a list, in lines of at most 100 characters."""
    return "\n".join(
        textwrap.fill(
            " ".join(text.split()), 100, subsequent_indent="  " if text.startswith("- ") else "",
            break_on_hyphens=False,
        )
        for text in paragraphs
    )  # fmt: skip


def markdown_table(header, rows):
    """A table in Markdown; cells become text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
