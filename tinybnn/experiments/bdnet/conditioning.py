"""The condition number of a binary depth-wise layer with and without the residual before its norm.

BD-Net's argument for that residual (Eq. 3 to 10), computed instead of approximated. With the factor
α of the batch norm and the Jacobian D of a depth-wise convolution, the layer has the Jacobian

    J = α D + I         without (Eq. 3): the identity is the residual behind the norm,
    J' = α D + (α + 1) I    with the residual before it (Eq. 4), which is J + α I.

The paper writes κ(J') as (λ1 + α) / (λn + α) of J's eigenvalues (Eq. 6), lets α grow (Eq. 8) and
finds κ(J') ≈ (λn / α + λn / λ1) κ(J) (Eq. 9). Eigenvalues do grow by α. But κ is the ratio of the
largest and the smallest factor by which a matrix stretches a vector, of its singular values, and
these grow by α only where J is symmetric without negative eigenvalues. With a filter of signs it
is neither.

There are only 2^9 filters of 3 x 3 signs, so all are looked at, on one channel: channels do not mix
in a depth-wise layer. κ of the Hessian of ½|J x|², which is JᵀJ, is κ(J)² (Eq. 5, here exact).
"""

from __future__ import annotations

import itertools
import textwrap

import numpy as np

from tinybnn import functional as F
from tinybnn import plots, tables

ALPHAS = tuple(float(f"{10**x:.3g}") for x in np.arange(-2, 2.01, 0.25))


def all_filters(size=3):
    """All filters of signs, (2 ** (size * size), size, size) float64."""
    signs = itertools.product((-1.0, 1.0), repeat=size * size)
    return np.array([*signs]).reshape(-1, size, size)


def jacobian(weight, pixels):
    """D of a depth-wise convolution that keeps the size of an image, for one channel.

    Parameters
    ----------
    weight : (k, k)
        k is odd.
    pixels : int
        Height and width of the image.

    Returns
    -------
    (pixels², pixels²) float64
        Of the input pixels a column each, of the output pixels a row each.
    """
    each = np.eye(pixels * pixels).reshape(-1, 1, pixels, pixels)
    out = F.conv2d(each, np.asarray(weight, float)[None, None], padding=len(weight) // 2)
    return np.ascontiguousarray(out.reshape(len(each), -1).T)


def stretch(matrices):
    """The largest and the smallest singular value of (..., n, n) matrices: (..., 2)."""
    return np.linalg.svd(matrices, compute_uv=False)[..., [0, -1]]


def run(alphas=ALPHAS, pixels=8, filters=None, say=print):
    """The condition numbers of all filters, and what the paper's formulas give for them.

    Parameters
    ----------
    alphas : sequence of float
        Factors of the batch norm, positive.
    pixels : int
        Height and width of the image.
    filters : (F, k, k), optional
        By default all of 3 x 3 signs.
    say : callable
        Gets the table and the sentences below it.

    Returns
    -------
    dict
        Ready for JSON: ``command``, ``alphas``, ``pixels``, ``filters`` (how many), ``rows``, for
        each α a dict of ``alpha``; ``without``, ``with``, ``eq6`` and ``eq9``, each [lower
        quartile, median, upper quartile] over the filters of κ(J), κ(J'), and κ(J') by Eq. 6 and
        by Eq. 9; ``smaller``, the share of filters with κ(J') < κ(J).
    """
    filters = all_filters() if filters is None else np.asarray(filters, float)
    convolutions = np.array([jacobian(weight, pixels) for weight in filters])
    rows = [_row(alpha, convolutions) for alpha in alphas]
    result = {
        "command": "tinybnn reproduce condition", "alphas": [*map(float, alphas)],
        "pixels": pixels, "filters": len(filters), "rows": rows,
    }  # fmt: skip
    say(report(result))
    return result


def _row(alpha, convolutions):
    identity = np.eye(convolutions.shape[-1])
    without = alpha * convolutions + identity
    first, last = np.moveaxis(stretch(without), -1, 0)
    largest, least = np.moveaxis(stretch(without + alpha * identity), -1, 0)
    with np.errstate(divide="ignore"):  # a singular J has κ = inf
        before, after = first / last, largest / least
        # Eq. 9 with κ(J) = λ1 / λn multiplied out, so that λn = 0 needs no 0 * inf.
        found = {
            "without": before, "with": after, "eq6": (first + alpha) / (last + alpha),
            "eq9": first / alpha + 1,
        }  # fmt: skip
    quartiles = {
        name: np.quantile(values, (0.25, 0.5, 0.75), method="nearest").tolist()
        for name, values in found.items()
    }
    return {"alpha": float(alpha), **quartiles, "smaller": float((after < before).mean())}


def report(result):
    """The table and what it says, as text."""
    header = ("α", "κ(J)", "κ(J')", "by Eq. 6", "by Eq. 9", "κ(J') < κ(J)")
    rows = [
        (f"{row['alpha']:g}", *(f"{row[key][1]:.3g}" for key in ("without", "with", "eq6", "eq9")),
         f"{row['smaller']:.0%}")
        for row in result["rows"]
    ]  # fmt: skip
    last = result["rows"][-1]
    size, median = f"{result['pixels']}×{result['pixels']}", last["without"][1]
    said = (
        f"At α = {last['alpha']:g} the residual makes the condition number smaller for "
        f"{last['smaller']:.0%} of the filters, and its median {median / last['with'][1]:.1f} "
        f"times smaller; by Eq. 9 it would be {median / last['eq9'][1]:.1f} times."
    )
    return (
        f"Condition numbers, medians of {result['filters']} filters on {size} pixels:\n\n"
        f"{tables.text(header, rows)}\n\n{textwrap.fill(said, 100)}"
    )


def draw(axes, result):
    """κ against α: medians as lines, quartiles as bands. Returns the Axes."""
    alphas = result["alphas"]
    for key, label in (
        ("without", "κ(J), no residual"), ("with", "κ(J'), with residual"),
        ("eq9", "κ(J') by Eq. 9"),
    ):  # fmt: skip
        low, middle, high = np.array([row[key] for row in result["rows"]]).T
        (line,) = axes.plot(alphas, middle, "--" if key == "eq9" else "o-", ms=3, label=label)
        axes.fill_between(alphas, low, high, color=line.get_color(), alpha=0.15)
    axes.set(
        xscale="log", yscale="log", xlabel="factor α of the batch norm", ylabel="condition number",
        title=f"All {result['filters']} filters",
    )  # fmt: skip
    axes.legend(fontsize=8)
    return axes


def save_picture(path, result):
    """`draw` as a PNG file."""
    figure = plots.figure(figsize=(6, 4))
    draw(figure.subplots(), result)
    plots.save(figure, path, "png")
