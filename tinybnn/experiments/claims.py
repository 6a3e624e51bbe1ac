"""The papers on BD-Net and HyBNN, claim by claim, with our figures and judgements.

``claims.json`` holds an entry for every claim, equation, table and figure; the cells of a table
share an entry if one figure decides them:

``id``, ``paper``
``where``
    Places in the paper: "Table 6", "Eq. 3", "Fig. 5", or the title of a section.
``claim``
    The paper's claim, in our words.
``state``
    One of `STATES`.
``figures``
    Our measurements or counts, see below.
``tests``
    Tests that decide instead, ``tests/FILE.py::NAME``.
``sources``
    Publications that decide instead.
``command``
    The command that makes the figures; None if nothing has to be run.
``reason``
    Why it has this state, and how the experiment differs from the paper's.

A figure has ``what`` and ``unit``; ``mean``, ``std`` and ``seeds`` (None if it does not depend on
seeds); ``p`` of a paired test if two networks are compared seed by seed. Its source:

``file``
    A file of experiments/results, or "printed": figures that the papers print, in claims.json.
``path``
    Steps into it: keys, positions, "*" for all of a list, or a mapping for those entries of a list
    that have its values. The first step that leads to several places gives a value for each seed;
    ``each`` says how further ones are reduced to one value (`REDUCTIONS`; the mean by default).
``minus``, ``over``
    With a ``path``, and a ``file`` if it is another: the value to subtract, or to divide by.
``times``
    A factor.
``all``
    How all values are reduced to one number, which then does not depend on seeds.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np

from tinybnn import tables
from tinybnn.experiments.report import mean_and_std, paired, probability

STATES: tuple[str, ...] = ("reproduced", "in part", "refuted", "open", "cannot be tested here")
REDUCTIONS: dict[str, Callable[[Any], Any]] = {
    "mean": np.mean, "median": np.median, "min": np.min, "max": np.max, "sum": np.sum, "count": len,
}  # fmt: skip


def ledger() -> dict[str, Any]:
    """Read ``claims.json``: ``printed``, figures that the papers print, and the ``claims``."""
    text = resources.files("tinybnn.experiments").joinpath("claims.json").read_text("utf-8")
    return json.loads(text)


def run(say: Callable[[str], Any] = print) -> dict[str, Any]:
    """Print all entries by paper and state, count them, and list the open ones.

    Parameters
    ----------
    say : callable
        Takes a line of text at a time.

    Returns
    -------
    dict
        ``counts``, paper -> state -> entries, and ``claims``, the entries.
    """
    entries = ledger()["claims"]
    counts = count(entries)
    for paper in counts:
        say(f"{paper}\n")
        for state in STATES:
            rows = [
                (", ".join(e["where"]), e["claim"], finding(e))
                for e in entries
                if (e["paper"], e["state"]) == (paper, state)
            ]
            if rows:
                say(f"{state} ({len(rows)})\n")
                say(tables.text(("where", "claim", "finding"), rows, align="<<<") + "\n")
    for entry in entries:
        if entry["state"] == "open":
            places = ", ".join(entry["where"])
            text = f"open: {entry['paper']}, {places}: {entry['claim']}. {entry['reason']}"
            say(textwrap.fill(text, tables.WIDTH, subsequent_indent="    ", break_on_hyphens=False))
    rows = [
        (state, *(str(of_paper[state]) for of_paper in counts.values()),
         str(sum(of_paper[state] for of_paper in counts.values())))
        for state in STATES
    ]  # fmt: skip
    say("\n" + tables.text(("", *counts, "both"), rows))
    return {"counts": counts, "claims": entries}


def count(entries: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count entries: paper -> state -> number."""
    return {
        paper: {
            state: sum((e["paper"], e["state"]) == (paper, state) for e in entries)
            for state in STATES
        }
        for paper in dict.fromkeys(e["paper"] for e in entries)
    }


def finding(entry: dict[str, Any]) -> str:
    """Return the figures of an entry in words, or the tests and sources that decided instead."""
    parts = [in_words(figure) for figure in entry["figures"]]
    for name in entry["tests"]:
        parts.append("tested: " + name.partition("::test_")[2].replace("_", " "))
    return "; ".join(parts + entry["sources"]) or entry["reason"]


def in_words(figure: dict[str, Any]) -> str:
    """Format a figure as text.

    >>> in_words({"what": "gain", "unit": "%", "mean": 1.2, "std": 0.28, "seeds": 3, "p": 0.02})
    'gain: 1.2 ± 0.28 %, 3 seeds, p = 0.02'
    """
    std = "" if figure["std"] is None else f" ± {figure['std']:.2g}"
    text = f"{figure['what']}: {_short(figure['mean'])}{std} {figure['unit']}".rstrip()
    if figure["seeds"] is not None:
        text += ", one seed" if figure["seeds"] == 1 else f", {figure['seeds']} seeds"
    return text if figure["p"] is None else f"{text}, {probability(figure['p'])}"


def _short(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


# ------------------------------------------------------------------------- figures and their files


def recompute(figure: dict[str, Any], read: Callable[[str], Any]) -> dict[str, Any]:
    """Compute a figure from its file; fractions are rounded to four digits.

    Parameters
    ----------
    figure : dict
    read : callable
        Name of a file -> its content.

    Returns
    -------
    dict
        ``mean``, ``std``, ``seeds`` and ``p``.
    """
    factor = figure.get("times", 1)
    values = _values(figure, figure["file"], read)
    p = None
    if "minus" in figure:
        other = _values(figure["minus"], figure["file"], read)
        if values.size > 1 and "all" not in figure:
            p = paired(values, other)["p"]
        values = values - other
    if "over" in figure:
        values = values / _values(figure["over"], figure["file"], read)
    if "all" in figure:
        values = np.array([REDUCTIONS[figure["all"]](values)])
    is_of_seeds = "all" not in figure and any(map(_branches, figure["path"]))
    numbers = mean_and_std(values * factor) | {"p": p}
    rounded = {k: v if v is None else _rounded(v) for k, v in numbers.items()}
    return rounded | {"seeds": len(values) if is_of_seeds else None}


def _rounded(value):
    return int(value) if value == int(value) else float(f"{value:.4g}")


def _branches(step):
    return step == "*" or isinstance(step, dict)


def _values(source, file, read):
    """The values of a source, one for each seed; if they are only counted, they may be objects."""
    nodes = _follow(read(source.get("file", file)), source["path"])
    reduce = REDUCTIONS[source.get("each", "mean")]
    return np.array([reduce(node) if isinstance(node, list) else node for node in nodes])


def _follow(node, path):
    """Follow a path: a list with an entry for each branch of its first branching step."""
    for i, step in enumerate(path):
        if _branches(step):
            return [_leaves(branch, path[i + 1 :]) for branch in _several(node, step)]
        node = node[step]
    return [node]


def _leaves(node, path):
    """Follow a path from a branch: the value, or a list of those of all further branches."""
    several = False
    nodes = [node]
    for step in path:
        if _branches(step):
            several, nodes = True, [n for node in nodes for n in _several(node, step)]
        else:
            nodes = [node[step] for node in nodes]
    return nodes if several else nodes[0]


def _several(node, step):
    entries = list(node.values()) if isinstance(node, dict) else node
    if step == "*":
        return entries
    return [entry for entry in entries if all(entry[key] == value for key, value in step.items())]
