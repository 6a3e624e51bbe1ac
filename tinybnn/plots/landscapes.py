"""Curvature, loss landscapes and the dynamics of signs, from plain arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.plots.canvas import (
    MINUS,
    PALETTE,
    PLUS,
    legend_below,
    legend_beside,
    logarithmic,
    marks,
    picture,
    whole_numbers,
)
from tinybnn.storage import write_atomic

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from plotly.graph_objects import Figure as PlotlyFigure

    from tinybnn.plots.canvas import Place

# ------------------------------------------------------------------------------------- curvature


@picture(size=(7.5, 4.0))
def spectrum(
    grid: ArrayLike, density: ArrayLike, eigenvalues: ArrayLike = (), *, ax: Place = None
) -> None:
    """Plot the spectral density of a Hessian on a logarithmic scale, with eigenvalues as ticks.

    Parameters
    ----------
    grid, density : (G,)
        Points and the density there, at least 0.
    eigenvalues : sequence of float
        Ticks below the curve, such as the ten largest.

    Returns
    -------
    matplotlib axes
    """
    grid, density = _vector("spectrum", "grid", grid), _vector("spectrum", "density", density)
    eigenvalues = np.atleast_1d(np.asarray(eigenvalues, float))
    if len(grid) != len(density):
        raise ValueError(
            f"spectrum: grid and density must have one length, got {len(grid)} and {len(density)}"
        )
    if not len(density) or density.min() < 0 or not density.max() > 0:
        raise ValueError(
            "spectrum: density must have values of at least 0, one of them positive; pass the "
            "density itself, not its logarithm"
        )
    floor = max(density[density > 0].min(), 1e-8 * density.max())
    ax.fill_between(grid, floor, np.maximum(density, floor), color=PALETTE[5], alpha=0.4, lw=0)
    ax.plot(grid, np.maximum(density, floor), color=MINUS, label="spectral density")
    ax.set(yscale="log", xlabel="eigenvalue", ylabel="density", ylim=(floor, 3 * density.max()))
    if len(eigenvalues):
        ax.plot(
            eigenvalues, np.full(len(eigenvalues), 0.03), "|", color=PALETTE[3], markersize=14,
            markeredgewidth=1.6, transform=ax.get_xaxis_transform(),
            label=f"eigenvalues; the largest: {eigenvalues.max():.3g}",
        )  # fmt: skip
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    legend_beside(ax)


@picture(size=(7.5, 4.0))
def eigenvalues(groups: Mapping[str, ArrayLike], *, ax: Place = None) -> None:
    """Plot the largest eigenvalues of several networks: mean and range over seeds.

    The axis is logarithmic if all are positive and differ by a factor of 10 or more.

    Parameters
    ----------
    groups : dict
        Label -> (k,) or (seeds, k) eigenvalues, each row from the largest down.

    Returns
    -------
    matplotlib axes
    """
    if not groups:
        raise ValueError("eigenvalues: expects a label and eigenvalues for each network, got none")
    low, high = np.inf, -np.inf
    for (marker, color, style), (label, values) in zip(marks(), groups.items(), strict=False):
        values = _of_seeds("eigenvalues", label, values)
        rank = np.arange(1, values.shape[1] + 1)
        _band(ax, rank, values, color)
        ax.plot(
            rank, values.mean(0), style, color=color, marker=marker, markersize=5.5,
            markeredgecolor="white", markeredgewidth=0.4, label=label,
        )  # fmt: skip
        low, high = min(low, values.min()), max(high, values.max())
    ax.set(xlabel="eigenvalue, from the largest", ylabel="value")
    if low > 0 and high >= 10 * low:
        logarithmic(ax, "y")
    whole_numbers(ax, "x")
    ax.grid(True, axis="y", color="0.92")
    ax.set_axisbelow(True)
    legend_beside(ax)


# ------------------------------------------------------------------------------------- landscapes


@picture(size=(7.5, 4.0))
def landscape(alphas: ArrayLike, losses: Mapping[str, ArrayLike], *, ax: Place = None) -> None:
    """Plot losses along a direction in weight space, such as of the surrogate and the network.

    Parameters
    ----------
    alphas : (A,)
        Steps along the direction; 0 is the network itself.
    losses : dict
        Label -> (A,) losses, or (seeds, A) for mean and range. The curve has a gap where a loss is
        not finite.

    Returns
    -------
    matplotlib axes
    """
    alphas = _vector("landscape", "alphas", alphas)
    for (marker, color, style), (label, values) in zip(marks(), losses.items(), strict=False):
        values = _of_seeds("landscape", label, values)
        if values.shape[1] != len(alphas):
            raise ValueError(
                f"landscape: the losses of {label!r} must be one for each of {len(alphas)} alphas, "
                f"got shape {values.shape}"
            )
        values = np.where(np.isfinite(values), values, np.nan)
        _band(ax, alphas, values, color)
        ax.plot(
            alphas, values.mean(0), style, color=color, marker=marker, markersize=4,
            markevery=max(1, len(alphas) // 12), markeredgecolor="white", markeredgewidth=0.4,
            label=label,
        )  # fmt: skip
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.set(xlabel="step along the direction", ylabel="loss", xlim=(alphas.min(), alphas.max()))
    legend_beside(ax)


@picture(size=(6.0, 4.8))
def contours(
    alphas: ArrayLike,
    betas: ArrayLike,
    losses: ArrayLike,
    trajectory: ArrayLike | None = None,
    *,
    ax: Place = None,
) -> None:
    """Plot the contours of a loss over two directions, with the network as a star.

    Parameters
    ----------
    alphas, betas : (A,), (B,)
        Increasing steps along the first and the second direction; 0 is the network itself.
    losses : (A, B)
        Values that are not finite are left blank.
    trajectory : (T, 2), optional
        Points of the path of training, in these directions.

    Returns
    -------
    matplotlib axes
    """
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.patheffects import withStroke

    alphas, betas, losses = _grid_of_losses("contours", alphas, betas, losses)
    shown = np.ma.masked_invalid(losses.T)
    low, high = float(shown.min()), float(shown.max())
    norm = None
    if low > 0 and high > 20 * low:
        levels, norm = np.geomspace(low, high, 13), LogNorm(low, high)
    else:
        levels = np.linspace(low, high, 13) if high > low else low + np.array([-0.5, 0.5])
    colors = LinearSegmentedColormap.from_list("loss", [MINUS, PALETTE[5], "white"])
    filled = ax.contourf(alphas, betas, shown, levels, cmap=colors, norm=norm)
    if high > low:
        lines = ax.contour(alphas, betas, shown, levels[1:-1:2], colors="0.25", linewidths=0.6)
        for text in ax.clabel(lines, fmt="%.3g", fontsize="x-small"):
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    bar = ax.get_figure().colorbar(filled, ax=ax, label="loss", format="%.3g")
    bar.ax.tick_params(labelsize="small")
    outline = [withStroke(linewidth=3, foreground="white")]
    if trajectory is not None:
        trajectory = np.asarray(trajectory, float)
        if trajectory.ndim != 2 or trajectory.shape[1] != 2:
            raise ValueError(
                f"contours: trajectory must be (points, 2), got shape {trajectory.shape}"
            )
        ax.plot(
            *trajectory.T, "o-", color=PALETTE[3], markersize=3.5, linewidth=1.4,
            path_effects=outline, label="training",
        )  # fmt: skip
        ax.plot(
            *trajectory[0], "s", color=PALETTE[3], markersize=7, markeredgecolor="white",
            label="its start",
        )  # fmt: skip
    ax.plot(
        0, 0, "*", color="black", markersize=13, markeredgecolor="white", label="the network",
    )  # fmt: skip
    ax.set(
        xlabel="step along the first direction", ylabel="step along the second direction",
        xlim=(alphas.min(), alphas.max()), ylim=(betas.min(), betas.max()),
    )  # fmt: skip
    ax.locator_params(nbins=6)
    legend_below(ax, [line for line in ax.get_lines() if not line.get_label().startswith("_")])


def landscape_html(
    path: str | os.PathLike[str],
    alphas: ArrayLike,
    betas: ArrayLike,
    losses: ArrayLike | Mapping[str, ArrayLike],
    trajectory: ArrayLike | None = None,
) -> PlotlyFigure:
    """Write rotatable loss surfaces to a self-contained HTML file.

    Needs plotly, the extra `interactive`; the file includes all of its code, about 5 MB. Clicking a
    surface's name shows or hides it.

    Parameters
    ----------
    path : str or PathLike
        Written atomically.
    alphas, betas : (A,), (B,)
    losses : (A, B), or dict of label -> (A, B)
        Such as those of the surrogate and of the binary network.
    trajectory : (T, 3), optional
        Points of the path of training: both directions and the loss.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    ImportError
        Without plotly.
    ValueError
        If shapes do not fit.
    OSError
        If the file cannot be written; an existing file at `path` stays unchanged.
    """
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise ImportError(
            "landscape_html: needs plotly; install it with pip install 'tinybnn[interactive]'"
        ) from error
    surfaces = losses if isinstance(losses, dict) else {"loss": losses}
    figure = graph_objects.Figure()
    for i, (label, values) in enumerate(surfaces.items()):
        alphas, betas, values = _grid_of_losses("landscape_html", alphas, betas, values)
        color = PALETTE[i % len(PALETTE)]
        figure.add_surface(
            x=alphas, y=betas, z=np.where(np.isfinite(values), values, np.nan).T, name=label,
            colorscale=[[0, color], [1, "white"]], showscale=False, showlegend=True, opacity=0.9,
            contours={"z": {"show": True, "color": "black", "width": 1}},
        )  # fmt: skip
    if trajectory is not None:
        trajectory = np.asarray(trajectory, float)
        if trajectory.ndim != 2 or trajectory.shape[1] != 3:
            raise ValueError(
                f"landscape_html: trajectory must be (points, 3), two steps and the loss, got "
                f"shape {trajectory.shape}"
            )
        x, y, z = trajectory.T
        figure.add_scatter3d(
            x=x, y=y, z=z, name="training", mode="lines+markers",
            line={"color": "black", "width": 5}, marker={"color": PALETTE[3], "size": 4},
        )  # fmt: skip
    figure.update_layout(
        scene={
            "xaxis_title": "first direction", "yaxis_title": "second direction",
            "zaxis_title": "loss", "aspectmode": "cube",
            "camera": {"eye": {"x": 1.6, "y": 1.6, "z": 1.1}},
        },
        legend={"x": 0, "y": 1}, margin={"l": 0, "r": 0, "t": 10, "b": 0},
    )  # fmt: skip
    write_atomic(path, figure.to_html(include_plotlyjs=True, div_id="landscape").encode())
    return figure


# ------------------------------------------------------------------------------ signs in training


@picture(size=(7.5, 4.0))
def flip_spectrum(changes: Mapping[str, ArrayLike], *, ax: Place = None) -> None:
    """Plot the change of the loss by each single flipped weight, from the best flip to the worst.

    Parameters
    ----------
    changes : dict
        Label, such as the layer's name -> changes of the loss, one per weight, any shape.

    Returns
    -------
    matplotlib axes
    """
    ordered = {label: np.sort(np.ravel(values)) for label, values in changes.items()}
    if not ordered or not all(len(values) for values in ordered.values()):
        raise ValueError("flip_spectrum: expects changes of the loss for each label, got none")
    typical = np.median(np.abs(np.concatenate([*ordered.values()])))
    for (_, color, style), (label, values) in zip(marks(), ordered.items(), strict=False):
        lower = np.mean(values < 0)
        share = 100 * (np.arange(len(values)) + 0.5) / len(values)
        ax.plot(share, values, style, color=color, label=f"{label}: {lower:.0%} lower the loss")
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.set(xlabel="weights, % (from the best flip)", ylabel="change of the loss", xlim=(0, 100))
    if typical > 0:
        ax.set_yscale("symlog", linthresh=float(typical))
    legend_beside(ax)


@picture(size=(7.5, 4.0))
def sign_flips(flips: ArrayLike, names: Sequence[str] | None = None, *, ax: Place = None) -> None:
    """Draw the share of signs that flip in each step, a row for each layer.

    Parameters
    ----------
    flips : (steps, layers)
        Shares from 0 to 1. Many steps are averaged to at most 400 columns.
    names : sequence of str, optional
        Names of the layers; default: their numbers.

    Returns
    -------
    matplotlib axes
    """
    from matplotlib.colors import LinearSegmentedColormap

    flips = np.asarray(flips, float)
    if flips.ndim != 2 or not flips.size or not (flips.min() >= 0 and flips.max() <= 1):
        raise ValueError(
            f"sign_flips: flips must be shares from 0 to 1 of shape (steps, layers), got shape "
            f"{flips.shape}; divide counts by the number of weights"
        )
    steps, layers = flips.shape
    names = range(layers) if names is None else names
    if len(names) != layers:
        raise ValueError(f"sign_flips: expects {layers} names, got {len(names)}")
    width = -(-steps // _MOST_COLUMNS)  # steps per column
    starts = np.arange(0, steps, width)
    counts = np.diff([*starts, steps])
    shown = np.add.reduceat(flips, starts).T / counts  # (layers, columns)
    colors = LinearSegmentedColormap.from_list("flips", ["white", PALETTE[5], MINUS, "black"])
    drawn = ax.imshow(
        100 * shown, cmap=colors, vmin=0, aspect="auto", interpolation="nearest",
        extent=(0.5, len(starts) * width + 0.5, layers - 0.5, -0.5),
    )  # fmt: skip
    ax.get_figure().colorbar(drawn, ax=ax, label="signs that flip in a step, %")
    ax.set(xlabel="step", ylabel="layer", xlim=(0.5, steps + 0.5))
    ax.set_yticks(range(layers), names, fontsize="small")
    whole_numbers(ax, "x")


_MOST_COLUMNS = 400


@picture(size=(7.5, 4.0))
def latents(weights: ArrayLike, clip: float | None = 1.0, *, ax: Place = None) -> None:
    """Plot a histogram of latent weights; those beyond the clip have no gradient.

    Parameters
    ----------
    weights : array of any shape
    clip : float or None
        End of the pseudo-gradient: weights beyond it get no gradient and keep their sign.

    Returns
    -------
    matplotlib axes
    """
    weights = np.ravel(np.asarray(weights, float))
    if not weights.size or not np.isfinite(weights).all():
        raise ValueError("latents: weights must be finite numbers, at least one")
    if clip is not None and not clip > 0:
        raise ValueError(f"latents: clip must be positive or None, got {clip!r}")
    limit = np.abs(weights).max() or 1.0
    edges = np.linspace(-limit, limit, 81)
    if clip is not None:  # a border between two bars
        width = clip / max(1, round(40 * clip / max(limit, 1.1 * clip)))
        count = int(np.ceil(max(limit, 1.1 * clip) / width))
        edges = width * np.arange(-count, count + 1)
        limit = edges[-1]
    parts = [(np.ones(len(weights), bool), MINUS, "latent weights")]
    if clip is not None:
        beyond, at = np.abs(weights) > clip, np.abs(weights) == clip
        parts = [
            (~beyond & ~at, MINUS, "inside"), (at, PALETTE[5], "at the clip"),
            (beyond, PLUS, "beyond, without gradient"),
        ]  # fmt: skip
    bottom = np.zeros(len(edges) - 1)
    for chosen, color, label in parts:
        values = weights[chosen]
        if label == "at the clip":
            values = 0.999 * values  # counted in the outermost bars inside
        counts = np.histogram(values, edges)[0]
        if len(parts) > 1:
            label = f"{label}: {np.mean(chosen):.1%}"
        ax.bar(edges[:-1], counts, np.diff(edges), bottom, align="edge", color=color, label=label)
        bottom += counts
    if clip is not None:
        for place in (-clip, clip):
            ax.axvline(place, color="black", linestyle="--", linewidth=0.9)
    ax.axvline(0, color="0.5", linewidth=0.8)
    ax.set(xlabel="latent weight", ylabel="count", xlim=(-limit, limit))
    legend_beside(ax)


# ------------------------------------------------------------------------------------- arguments


def _vector(where, name, values):
    values = np.asarray(values, float)
    if values.ndim != 1:
        raise ValueError(f"{where}: {name} must have one dimension, got shape {values.shape}")
    return values


def _of_seeds(where, label, values):
    """Convert (k,) or (seeds, k) to (seeds, k)."""
    values = np.asarray(values, float)
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(
            f"{where}: the values of {label!r} must have the shape (k,) or (seeds, k), got "
            f"{values.shape}"
        )
    return np.atleast_2d(values)


def _grid_of_losses(where, alphas, betas, losses):
    alphas, betas = _vector(where, "alphas", alphas), _vector(where, "betas", betas)
    losses = np.asarray(losses, float)
    shape = (len(alphas), len(betas))
    if losses.shape != shape or min(shape) < 2:
        raise ValueError(
            f"{where}: losses must have the shape (alphas, betas), {shape}, with at least 2 of "
            f"each, got {losses.shape}"
        )
    if not np.isfinite(losses).any():
        raise ValueError(f"{where}: no loss is finite")
    return alphas, betas, losses


def _band(ax, x, values, color):
    """Draw the range over seeds."""
    if len(values) > 1:
        ax.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
