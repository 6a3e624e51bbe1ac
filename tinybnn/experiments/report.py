"""Reports of experiments: figures over seeds as text, pages of tables and paragraphs, pictures.

Everything here states facts: figures, what they mean, where they come from. Whether a figure
confirms a claim is judged by hand, in the ledger (``claims.json``) and on the page of results.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinybnn import plots, tables

# ------------------------------------------------------------------------------ figures over seeds


def mean_and_std(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Return the mean and the standard deviation of a sample (squares are divided by n - 1).

    Parameters
    ----------
    values : (seeds,) array_like of float

    Returns
    -------
    dict
        ``mean``, and ``std``, which is None for a single value.
    """
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}


def percent(mean: float, std: float | None = None, sign: str = "") -> str:
    """Format a mean with its standard deviation in percent.

    >>> percent(**mean_and_std([0.5, 0.52])), percent(0.01, None, sign="+")
    ('51.00 ± 1.41', '+1.00')
    """
    deviation = "" if std is None else f" ± {std * 100:.2f}"
    return f"{mean * 100:{sign}.2f}{deviation}"


def fixed(values: Sequence[float] | np.ndarray, digits: int = 2) -> str:
    """Format the mean of some values, with their standard deviation if there are several.

    >>> fixed([1.0, 2.0]), fixed([0.12345])
    ('1.50 ± 0.71', '0.12')
    """
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def spread(values: Any, digits: int = 3) -> str:
    """Format the result of `mean_and_std` with a number of significant digits.

    >>> spread(mean_and_std([1.0, 2.0])), spread(mean_and_std([0.12345]))
    ('1.5 ± 0.71', '0.123')
    """
    std = "" if values["std"] is None else f" ± {values['std']:.{digits - 1}g}"
    return f"{values['mean']:.{digits}g}{std}"


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Compare two networks seed by seed, by Student's t test of the differences, two-sided.

    Networks of a seed share images, their order and the test set, so their differences vary less
    than their accuracies. The test is about other seeds, not about other test images.

    Parameters
    ----------
    first, second : (seeds,) array_like of float
        In the same order.

    Returns
    -------
    dict
        ``mean`` and ``std`` of first - second; ``seeds``; ``better``, the number of seeds in which
        the first is larger; ``p``, or None for a single seed.

    >>> pair = paired([0.7, 0.9, 0.8], [0.6, 0.7, 0.7])
    >>> pair["better"], round(pair["p"], 4)
    (3, 0.0572)
    """
    differences = np.subtract(first, second)
    return {
        **mean_and_std(differences),
        "seeds": len(differences),
        "better": int((differences > 0).sum()),
        "p": _student(differences) if len(differences) > 1 else None,
    }


def _student(differences):
    """Two-sided p of the mean of some numbers, if their expectation is 0."""
    freedom = len(differences) - 1
    error = np.std(differences, ddof=1) / math.sqrt(len(differences))
    angle = math.atan2(abs(np.mean(differences)), error * math.sqrt(freedom))
    # The share within ±t has a closed form (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for power in range(odd, freedom, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    within = (angle + sine * total) * 2 / math.pi if odd else sine * total
    return max(0.0, 1.0 - within)


def probability(p: float) -> str:
    """Format a p: "p = 0.057", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


# The columns of `against`, and the note below a table that has them.
PAIR: tuple[str, str, str] = "points, seed by seed", "better in", "paired t test"
PAIRED = (
    "p is that of Student's t test of the differences seed by seed, two-sided, not corrected for "
    "the number of comparisons; it speaks of other seeds on the same test images."
)


def against(first: Sequence[float], second: Sequence[float]) -> list[str]:
    """Return the cells of a table row, under `PAIR`, that compare two accuracies seed by seed.

    >>> against([0.7, 0.9, 0.8], [0.6, 0.7, 0.7])
    ['+13.33 ± 5.77', '3 of 3', 'p = 0.057']
    >>> against([0.7], [0.6])
    ['+10.00', '1 of 1', '']
    """
    pair = paired(first, second)
    p = "" if pair["p"] is None else probability(pair["p"])
    return [percent(pair["mean"], pair["std"], "+"), f"{pair['better']} of {pair['seeds']}", p]


# ------------------------------------------------------------------------------------------- pages

QUICK_RUN = "A quick run: its figures mean nothing beyond showing that the code runs."


def notice(config: dict[str, Any]) -> str:
    """Return the warning of a run whose figures are not those of its experiment, or "".

    Parameters
    ----------
    config : dict
        ``quick``: whether it is a quick run; ``limit``: the number of images it was limited to.
    """
    parts = [QUICK_RUN] * bool(config.get("quick"))
    if config.get("limit"):
        parts.append(f"Only the first {config['limit']:,} images were used.")
    return " ".join(parts)


def table(rows: Iterable[Any], columns: Mapping[str, Callable[[Any], Any]]) -> str:
    """Format a table in Markdown: header -> the function that makes a cell of a row."""
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return tables.markdown(list(columns), cells)


def page(title: str, result: dict[str, Any], about: str, *parts: Any) -> str:
    """Lay out a report in Markdown.

    It begins with the title, the `notice` of the run, the command, date and machine.

    Parameters
    ----------
    title : str
    result : dict
        Begins with `runner.provenance`.
    about : str
        A paragraph that follows date and machine.
    *parts
        Each a paragraph, which is wrapped; a table, a heading or a picture, which is not; or a list
        of items. Empty parts are left out.

    Returns
    -------
    str
    """
    warning = notice(result["config"])
    parts = (
        f"# {title}", warning and wrapped(f"**{warning}**"), f"    {result['command']}",
        f"{when_and_where(result)}. {about}", *parts,
    )  # fmt: skip
    return "\n\n".join(map(_block, filter(None, parts))) + "\n"


def _block(part):
    if isinstance(part, list):
        return wrapped(*part)
    return part.rstrip() if part.startswith(("#", "|", "!", "    ", "**")) else wrapped(part)


def when_and_where(result: dict[str, Any]) -> str:
    """Return the date, processor and versions of a result that began with `runner.provenance`."""
    machine = result["machine"]
    return (
        f"{result['date']}, {machine['processor']}, NumPy {machine['numpy']}, "
        f"Numba {machine['numba']}"
    )


def wrapped(*paragraphs: str) -> str:
    """Wrap paragraphs, or items of a list, to lines of at most 100 characters."""
    return "\n".join(
        textwrap.fill(
            " ".join(text.split()), 100, subsequent_indent="  " if text.startswith("- ") else "",
            break_on_hyphens=False,
        )
        for text in paragraphs
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- pictures


def save_picture(
    path: Path, size: tuple[float, float], draw: Callable[..., Any], *arguments: Any
) -> None:
    """Write ``draw(figure, *arguments)`` to a PNG file; `size` is in inches."""
    figure = plots.figure(figsize=size)
    draw(figure, *arguments)
    plots.save(figure, path)
