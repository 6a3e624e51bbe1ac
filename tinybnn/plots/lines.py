"""Curves, dots and trade-offs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.plots.canvas import (
    legend_below,
    legend_beside,
    logarithmic,
    marks,
    picture,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from tinybnn.plots.canvas import Place
    from tinybnn.training import History

_FEW = 25  # curves of up to this many points have a marker at each


@picture
def history(history: History, *, ax: Place = None) -> None:
    """Plot loss (left axis) and accuracy (right axis) over the epochs of a `training.History`.

    For a regression, without accuracy, plot the losses of training and validation.
    """
    epochs, columns, kinds = history["epoch"], history.rows[0], marks()
    _curve(ax, next(kinds), epochs, history["loss"], "training loss")
    lines = ax.get_lines()
    if "accuracy" in columns:
        right = ax.twinx()
        for name, label in (
            ("accuracy", "training accuracy"), ("val_accuracy", "validation accuracy"),
        ):  # fmt: skip
            if name in columns:
                _curve(right, next(kinds), epochs, np.multiply(history[name], 100), label)
        right.set(ylabel="accuracy, %", ylim=(0, 102))
        lines = [*lines, *right.get_lines()]
    elif "val_loss" in columns:
        _curve(ax, next(kinds), epochs, history["val_loss"], "validation loss")
        lines = ax.get_lines()
    ax.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    _count_from_one(ax, len(epochs))
    legend_below(ax, lines)


def _curve(ax, mark, x, y, label, first=0.0):
    """Plot a line with markers, at all of few points or at some of many.

    `first` places the first marker, as a share of the distance between two markers.
    """
    marker, color, style = mark
    step = 1 if len(x) <= _FEW else len(x) // _FEW + 1
    ax.plot(
        x, y, style, color=color, label=label, marker=marker, markersize=5.5,
        markeredgecolor="white", markeredgewidth=0.4, linewidth=1.3,
        markevery=(int(first * step), step),
    )  # fmt: skip


def _count_from_one(ax, count):
    """Set up an x axis for epochs or rounds: whole numbers, from 1 to a count."""
    whole_numbers(ax, "x")
    if count == 1:
        ax.set_xlim(0.5, 1.5)


@picture
def curves(
    lines: Mapping[str, Sequence[float]],
    ylabel: str,
    xlabel: str = "epoch",
    legend: bool = True,
    *,
    ax: Place = None,
) -> None:
    """Plot curves over the epochs, from 1, with markers.

    Parameters
    ----------
    lines : dict
        Label -> a value for each epoch.
    ylabel, xlabel : str
    legend : bool
        Whether to add a legend beside the axes.
    """
    points = {label: (np.arange(1, len(y) + 1), y) for label, y in lines.items()}
    curves_through(points, ax=ax)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _count_from_one(ax, max(map(len, lines.values()), default=0))
    if legend:
        legend_beside(ax)


@picture
def curves_through(points: Mapping[str, tuple[ArrayLike, ArrayLike]], *, ax: Place = None) -> None:
    """Plot curves, each through its own points, with markers and without a legend.

    Parameters
    ----------
    points : dict
        Label -> (x, y), two sequences.
    """
    for i, (mark, (label, (x, y))) in enumerate(zip(marks(), points.items(), strict=False)):
        _curve(ax, mark, x, y, label, first=i / len(points))


@picture
def dots(
    groups: Mapping[str, Sequence[tuple[float, float]]],
    names: Sequence[str],
    ylabel: str,
    *,
    ax: Place = None,
) -> Figure:
    """Plot values as dots with their standard deviations, on an axis zoomed to them.

    If the values fall into two ranges far apart, the axis is broken: each range has its own axes,
    one above the other.

    Parameters
    ----------
    groups : dict
        Label -> a pair of value and standard deviation for each name. NaN is omitted. Each label
        has its own marker.
    names : sequence of str
        Ticks of the x axis.
    ylabel : str

    Returns
    -------
    matplotlib.figure.Figure
        Its last axes are those drawn on, from top to bottom; those of a broken axis replace `ax`.
    """
    values, errors = np.moveaxis(np.array([*groups.values()], float), -1, 0)  # (groups, names)
    cut = _widest_gap(values)
    if cut is None:
        parts = [(ax, np.isfinite(values))]
    else:
        upper, lower = values > cut, values < cut  # NaN is in neither
        heights = (3, 1) if upper.sum() >= lower.sum() else (1, 3)
        both = _two_of(ax, heights)
        parts = [*zip(both, (upper, lower), strict=True)]
        _break_between(*both)
    width = min(0.8 / len(groups), 0.15)
    for ax, shown in parts:
        for i, ((marker, color, _), label) in enumerate(zip(marks(), groups, strict=False)):
            x = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
            spread = np.where(errors[i] > 0, errors[i], np.nan)
            ax.errorbar(
                x[shown[i]], values[i, shown[i]], spread[shown[i]], fmt=marker, color=color,
                label=label, markersize=6, markeredgecolor="white", markeredgewidth=0.5,
                capsize=2, elinewidth=1,
            )  # fmt: skip
        ax.grid(True, axis="y", color="0.92")
        ax.set_axisbelow(True)
        for border in range(1, len(names)):
            ax.axvline(border - 0.5, color="0.85", linewidth=0.8, zorder=0)
        ax.set_xlim(-0.5, len(names) - 0.5)
        ax.margins(y=0.08 if cut is None or shown.sum() > (~shown).sum() else 0.25)
    last = parts[-1][0]
    last.set_xticks(range(len(names)), names)
    is_upper_taller = cut is not None and heights[0] > heights[1]
    parts[0 if is_upper_taller else -1][0].set(ylabel=ylabel)
    legend_beside(parts[0][0])
    return last.figure


def _widest_gap(values):
    """Return the middle of a gap much wider than the ranges on both sides of it, else None."""
    rising = np.sort(values[np.isfinite(values)])
    if len(rising) < 3:
        return None
    i = int(np.diff(rising).argmax())
    gap = rising[i + 1] - rising[i]
    widest_side = max(rising[i] - rising[0], rising[-1] - rising[i + 1])
    return (rising[i] + rising[i + 1]) / 2 if gap > 3 * widest_side > 0 else None


def _two_of(ax, heights):
    """Replace axes by two, one above the other."""
    from matplotlib.gridspec import GridSpec

    figure, place = ax.figure, ax.get_position()
    if ax.get_subplotspec() is None:
        grid = GridSpec(
            2, 1, figure, height_ratios=heights, left=place.x0, right=place.x1, bottom=place.y0,
            top=place.y1,
        )  # fmt: skip
    else:
        grid = ax.get_subplotspec().subgridspec(2, 1, height_ratios=heights)
    ax.remove()
    upper = figure.add_subplot(grid[0])
    upper.tick_params(labelbottom=False)
    return upper, figure.add_subplot(grid[1], sharex=upper)


def _break_between(upper, lower):
    """Style two axes, one above the other, as a single one with a broken y axis."""
    upper.spines.bottom.set_visible(False)
    lower.spines.top.set_visible(False)
    upper.tick_params(bottom=False)
    slash = {
        "marker": [(-1, -0.5), (1, 0.5)], "markersize": 8, "linestyle": "none", "color": "black",
        "markeredgewidth": 1, "clip_on": False,
    }  # fmt: skip
    upper.plot([0, 1], [0, 0], transform=upper.transAxes, **slash)
    lower.plot([0, 1], [1, 1], transform=lower.transAxes, **slash)


@picture
def trade_off(
    points: Mapping[str, tuple[float, float, float] | Sequence[tuple[float, float, float]]],
    xlabel: str,
    ylabel: str,
    legend: bool = True,
    *,
    ax: Place = None,
) -> None:
    """Plot gains against costs, a marker for each label, or some of them joined by a line.

    The axis of costs is logarithmic if they differ by a factor of 3 or more.

    Parameters
    ----------
    points : dict
        Label -> (cost, gain, standard deviation of the gain), or a sequence of such.
    xlabel, ylabel : str
    legend : bool
    """
    lines = {label: np.atleast_2d(of).T for label, of in points.items()}
    for (marker, color, _), (label, (x, y, error)) in zip(marks(), lines.items(), strict=False):
        ax.errorbar(
            x, y, error if error.any() else None, fmt=f"{marker}-", color=color, label=label,
            markersize=8, markeredgecolor="white", markeredgewidth=0.5, linewidth=1, capsize=2,
        )  # fmt: skip
    costs = np.concatenate([x for x, _, _ in lines.values()])
    is_wide = min(costs) > 0 and max(costs) >= 3 * min(costs)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if is_wide:
        logarithmic(ax, "x")
    ax.grid(True, color="0.92")
    ax.set_axisbelow(True)
    if legend:
        legend_beside(ax)
