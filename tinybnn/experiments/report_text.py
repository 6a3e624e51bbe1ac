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


def spread(found, digits=3):
    """What `mean_and_std` found, with some digits.

    >>> spread(mean_and_std([1.0, 2.0])), spread(mean_and_std([0.12345]))
    ('1.5 ± 0.71', '0.123')
    """
    std = "" if found["std"] is None else f" ± {found['std']:.{digits - 1}g}"
    return f"{found['mean']:.{digits}g}{std}"


QUICK_RUN = "A quick run: its figures mean nothing beyond showing that the code runs."


def notice(config):
    """What is said first of a run whose figures are not those of its experiment; else nothing.

    Parameters
    ----------
    config : dict
        ``quick``: whether it is a quick run; ``limit``: of how many images it saw the first ones.
    """
    parts = [QUICK_RUN] * bool(config.get("quick"))
    if config.get("limit"):
        parts.append(f"Only the first {config['limit']:,} images were used.")
    return " ".join(parts)


def top(title, result):
    """The first lines of a ``report.md``: its title, what has to be said first, the command."""
    said = notice(result["config"])
    said = wrapped(f"**{said}**") + "\n\n" if said else ""
    return f"# {title}\n\n{said}    {result['command']}\n"


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
