"""The roofline of a machine and the kernels below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.plots.canvas import marks, picture

if TYPE_CHECKING:
    from tinybnn.plots.canvas import Place


@picture
def roofline(
    rows: Sequence[Mapping[str, Any]], peak: float, bandwidth: float, *, ax: Place = None
) -> None:
    """Plot sign products per second against products per byte, below the roof of the machine.

    Register throughput and memory bandwidth bound the speed of a kernel (the roofline of Williams,
    Waterman, Patterson 2009). The bytes of a point are the minimum that it reads and writes; data
    in a cache does not wait for memory, so points may lie above the slope.

    Parameters
    ----------
    rows : list of dict
        Rows of a benchmark: ``name``, ``shape``, ``products``, ``bytes``, ``ours_s``, and ``peer``,
        ``peer_s``, ``peer_bytes``. Rows without products or bytes are omitted, and rows that differ
        only in the peer are drawn once. NumPy's sgemm on floats is drawn too.
    peak : float
        Register-only peak, products per second.
    bandwidth : float
        Bytes per second.
    """
    ours, sgemm = _points(rows)
    points = [point for group in (*ours.values(), sgemm) for point in group]
    xs = [x for x, _, _ in points] + [peak / bandwidth]
    low, high = min(xs) / 3, max(xs) * 3
    x = np.array([low, peak / bandwidth, high])
    ax.plot(x, np.minimum(peak, bandwidth * x) / 1e9, color="0.2", zorder=1)
    ax.set(
        xscale="log", yscale="log", xlim=(low, high), xlabel="sign products per byte moved",
        ylabel="Gbit-MAC/s",
    )  # fmt: skip
    ax.grid(True, which="major", color="0.92", zorder=0)
    for place, text, offset in (
        ((peak / bandwidth, peak / 1e9), f"registers: {peak / 1e9:,.0f} Gbit-MAC/s", (4, 5)),
        ((low, bandwidth * low / 1e9), f"memory: {bandwidth / 1e9:.0f} GB/s", (24, 6)),
    ):
        ax.annotate(
            text, place, offset, textcoords="offset points", ha="left", fontsize="small",
            color="0.2",
        )  # fmt: skip
    drawn, entries = [], []
    for (marker, color, _), (name, group) in zip(marks(), ours.items(), strict=False):
        entries.append((_dots(ax, group, marker, color), name))
        for x, y, shape in group:
            drawn.append((x, y))
            entries.append((_nothing(), f"{len(drawn):>2}  {shape}"))
    if sgemm:
        entries.append((_dots(ax, sgemm, "x", "0.45"), "NumPy sgemm, on floats"))
    handles, labels = zip(*entries, strict=True) if entries else ((), ())
    ax.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
        fontsize="small", handlelength=1.0, labelspacing=0.3, borderaxespad=0.0,
    )  # fmt: skip
    _number(ax, drawn)


def _points(rows):
    """Collect {name: [(products per byte, Gbit-MAC/s, shape)]}, and the points of sgemm."""
    ours, sgemm, seen = {}, [], set()
    for row in rows:
        if row["products"] and row["bytes"]:
            if (row["name"], row["shape"]) not in seen:
                seen.add((row["name"], row["shape"]))
                ours.setdefault(row["name"], []).append(
                    (row["products"] / row["bytes"], row["products"] / row["ours_s"] / 1e9,
                     row["shape"])
                )  # fmt: skip
            if row["peer"] == "NumPy sgemm" and row["peer_bytes"]:
                rate = row["products"] / row["peer_s"] / 1e9
                sgemm.append((row["products"] / row["peer_bytes"], rate, row["shape"]))
    return ours, sgemm


def _dots(ax, points, marker, color):
    """Draw points and return their handle for the legend."""
    edge = {} if marker == "x" else {"markeredgecolor": "white"}
    x, y, _ = zip(*points, strict=True)
    [line] = ax.plot(x, y, marker, color=color, markersize=8, zorder=3, **edge)
    return line


def _nothing():
    """Make a legend entry that has only a text."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="")


def _number(ax, points):
    """Write 1, 2, 3, ... beside points, on the side with most room."""
    from matplotlib.patheffects import withStroke

    ax.figure.draw_without_rendering()  # fixes the place of the axes
    points_a_pixel = 72 / ax.figure.dpi
    places = [ax.transData.transform(point) * points_a_pixel for point in points]
    taken = list(places)
    for i, (point, place) in enumerate(zip(points, places, strict=True)):
        others = np.array(taken[:i] + taken[i + 1 :]).reshape(-1, 2)
        angles = np.arange(12) * np.pi / 6
        ways = 9 * np.stack([np.cos(angles), np.sin(angles)], 1)  # (12, 2) points
        distance = np.linalg.norm((place + ways)[:, None] - others, axis=2)  # (12, others)
        way = ways[distance.min(1, initial=99.0).argmax()]
        ax.annotate(
            str(i + 1), point, way, textcoords="offset points", ha="center", va="center",
            fontsize=7.5, zorder=4, path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
        taken.append(place + way)
