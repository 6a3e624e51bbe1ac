"""The figures of an experiment as text: mean and deviation over seeds, tables, paragraphs."""

from __future__ import annotations

import math
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


ALPHA = 0.05  # networks whose differences have a larger p are not told apart


def paired(first, second):
    """Compare two networks seed by seed, by Student's t test of the differences, two-sided.

    Networks of a seed share images, their order and the test set, so that their differences vary
    less than their accuracies. The test speaks of other seeds, not of other test images.

    Parameters
    ----------
    first, second : sequence of float
        One value for each seed, in the same order.

    Returns
    -------
    dict
        ``mean`` and ``std`` of first - second; ``seeds``; ``better``, in how many of them the first
        is larger; ``p``, how often differences without a direction would be as clear as these, or
        None for one seed; ``apart``, whether p is below `ALPHA`.

    >>> found = paired([0.7, 0.9, 0.8], [0.6, 0.7, 0.7])
    >>> found["better"], round(found["p"], 4)
    (3, 0.0572)
    """
    differences = np.subtract(first, second)
    p = _student(differences) if len(differences) > 1 else None
    return {
        **mean_and_std(differences),
        "seeds": len(differences),
        "better": int((differences > 0).sum()),
        "p": p,
        "apart": p is not None and p < ALPHA,
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


def versus(found):
    """What `paired` found of two accuracies, in words.

    >>> versus(paired([0.7, 0.9, 0.8], [0.6, 0.7, 0.7]))
    '+13.33 ± 5.77 points, better in 3 of 3 seeds, p = 0.057: not told apart by 3 seeds'
    >>> versus(paired([0.7], [0.6]))
    '+10.00 points, one seed'
    """
    points = f"{percent(found['mean'], found['std'], '+')} points"
    if found["p"] is None:
        return f"{points}, one seed"
    seeds = found["seeds"]
    apart = "" if found["apart"] else f": not told apart by {seeds} seeds"
    return (
        f"{points}, better in {found['better']} of {seeds} seeds, {probability(found['p'])}{apart}"
    )


def probability(p):
    """A p as text: "p = 0.057", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


PAIRED = (
    "p is that of Student's t test of the differences seed by seed, two-sided, not corrected for "
    "the number of comparisons; it speaks of other seeds on the same test images."
)

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
