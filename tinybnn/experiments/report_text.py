"""The figures of an experiment as text: mean and deviation over seeds, tables, paragraphs."""

from __future__ import annotations

import textwrap

import numpy as np


def mean_and_std(values):
    """Mean and standard deviation of a sample (its squares are divided by n - 1).

    Parameters
    ----------
    values : sequence of float
        One for each seed.

    Returns
    -------
    dict
        ``mean``, and ``std``, which is None for a single value.
    """
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}


def percent(mean, std, sign=""):
    """A mean with its standard deviation, in percent.

    >>> percent(**mean_and_std([0.5, 0.52])), percent(0.01, None, sign="+")
    ('51.00 ± 1.41', '+1.00')
    """
    spread = "" if std is None else f" ± {std * 100:.2f}"
    return f"{mean * 100:{sign}.2f}{spread}"


def when_and_where(result):
    """Date, processor and versions of a result that began with `run_folder.provenance`."""
    machine = result["machine"]
    return (
        f"{result['date']}, {machine['processor']}, NumPy {machine['numpy']}, "
        f"Numba {machine['numba']}"
    )


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
