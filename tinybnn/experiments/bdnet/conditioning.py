"""The condition number of a binary depth-wise layer with and without the residual before its norm.

BD-Net's argument for that residual (Eq. 3 to 10), computed instead of approximated. With the factor
α of the batch norm and the Jacobian D of a depth-wise convolution, the Jacobian of the layer is

    J = α D + I         without (Eq. 3): the identity is the residual after the norm,
    J' = α D + (α + 1) I    with the residual before it (Eq. 4), which is J + α I.

The paper writes κ(J') as (λ1 + α) / (λn + α) of J's eigenvalues (Eq. 6), lets α grow (Eq. 8) and
obtains κ(J') ≈ (λn / α + λn / λ1) κ(J) (Eq. 9). Eigenvalues do grow by α. But κ is the ratio of
the largest and the smallest singular value, and these grow by α only if J is symmetric without
negative eigenvalues. With a filter of signs it is neither.

All 2^9 filters of 3 x 3 signs are computed, on one channel: channels do not mix in a depth-wise
layer. κ of the Hessian of ½|J x|², which is JᵀJ, is κ(J)² (Eq. 5, here exact).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinybnn import functional as F
from tinybnn import plots, tables

ALPHAS: tuple[float, ...] = tuple(float(f"{10**x:.3g}") for x in np.arange(-2, 2.01, 0.25))


def all_filters(size: int = 3) -> NDArray[np.float64]:
    """Return all filters of signs, (2 ** (size * size), size, size) float64."""
    signs = itertools.product((-1.0, 1.0), repeat=size * size)
    return np.array([*signs]).reshape(-1, size, size)


def jacobian(weight: ArrayLike, pixels: int) -> NDArray[np.float64]:
    """Compute the Jacobian D of a depth-wise convolution with padding, for one channel.

    Parameters
    ----------
    weight : (k, k) array_like
        k is odd; the convolution keeps the size of an image.
    pixels : int
        Height and width of the image.

    Returns
    -------
    (pixels², pixels²) float64
        A column for each input pixel, a row for each output pixel.
    """
    each, weight = np.eye(pixels * pixels).reshape(-1, 1, pixels, pixels), np.asarray(weight, float)
    out = F.conv2d(each, weight[None, None], padding=len(weight) // 2)
    return np.ascontiguousarray(out.reshape(len(each), -1).T)


def stretch(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest and the smallest singular value of (..., n, n) matrices: (..., 2)."""
    return np.linalg.svd(matrices, compute_uv=False)[..., [0, -1]]


def run(
    alphas: Sequence[float] = ALPHAS,
    pixels: int = 8,
    filters: ArrayLike | None = None,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Compute the condition numbers of all filters, exactly and by the paper's formulas.

    Parameters
    ----------
    alphas : sequence of float
        Factors of the batch norm, positive.
    pixels : int
        Height and width of the image.
    filters : (F, k, k) array_like, optional
        Default: all of 3 x 3 signs.
    say : callable
        Takes the table as text.

    Returns
    -------
    dict
        Ready for JSON: ``command``, ``alphas``, ``pixels``; ``filters``, their number; ``rows``, a
        dict for each α: ``alpha``; ``without``, ``with``, ``eq6`` and ``eq9``, each [lower
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
        numbers = {
            "without": before, "with": after, "eq6": (first + alpha) / (last + alpha),
            "eq9": first / alpha + 1,
        }  # fmt: skip
    quartiles = {
        name: np.quantile(values, (0.25, 0.5, 0.75), method="nearest").tolist()
        for name, values in numbers.items()
    }
    return {"alpha": float(alpha), **quartiles, "smaller": float((after < before).mean())}


def report(result: dict[str, Any]) -> str:
    """Return the table as text."""
    header = ("α", "κ(J)", "κ(J')", "by Eq. 6", "by Eq. 9", "κ(J') < κ(J)")
    rows = [
        (f"{row['alpha']:g}", *(f"{row[key][1]:.3g}" for key in ("without", "with", "eq6", "eq9")),
         f"{row['smaller']:.0%}")
        for row in result["rows"]
    ]  # fmt: skip
    size = f"{result['pixels']}×{result['pixels']}"
    title = f"Condition numbers, medians of {result['filters']} filters on {size} pixels"
    return f"{title}; without (J) and with the residual (J'):\n\n{tables.text(header, rows)}"


def draw(axes: Any, result: dict[str, Any]) -> Any:
    """Draw κ against α on matplotlib Axes, which are returned: medians, quartiles as bands."""
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


def save_picture(path: str | Path, result: dict[str, Any]) -> None:
    """Draw a result into a PNG file."""
    figure = plots.figure(figsize=(6, 4))
    draw(figure.subplots(), result)
    plots.save(figure, path, "png")
