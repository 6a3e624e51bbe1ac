"""Boxes in rows and arrows between them: a layered drawing of a directed graph."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.plots.canvas import sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 0.22  # inches between neighbours in a row
_WIDE_GAP = 0.6  # inches between two groups
_FONT = 8.0  # points


class Box:
    """A node of the picture or, without lines of text, a bend where an arrow passes a row.

    Parameters
    ----------
    kind : str
        Key into the fills of `draw`.
    lines : sequence of str
        The first is bold.
    carries : (str, str), optional
        Label of the arrow that leaves the box, and the key of its style.
    group : str
        Title of the frame around the boxes of a group; "" for none.

    Attributes
    ----------
    sources, targets : list of Box
        Boxes whose arrows end here, and where arrows from here end.
    path : str
        Path of the module.
    rank : int
        Number of rows below.
    x, width, height : float
        Horizontal position of the middle, and size, inches.
    is_labelled : bool
        Whether the label of its arrow has been drawn.
    weight : float
        Longest path from a leaf; boxes of small weight make way for those of large weight.
    """

    kind: str
    lines: tuple[str, ...]
    carries: tuple[str, str] | tuple[()]
    group: str
    sources: list[Box]
    targets: list[Box]
    path: str
    rank: int
    x: float
    is_labelled: bool
    weight: float
    width: float
    height: float

    def __init__(
        self, kind: str = "", lines: Sequence[str] = (),
        carries: tuple[str, str] | tuple[()] = (), group: str = "",
    ) -> None:  # fmt: skip
        self.kind, self.lines, self.carries, self.group = kind, tuple(lines), carries, group
        self.sources, self.targets = [], []
        self.path, self.rank, self.x, self.width = "", 0, 0.0, 0.0
        self.is_labelled, self.weight = False, 0.1
        self.height = 0.14 * len(lines) + 0.12 if lines else 0.0


def connect(source: Box, target: Box) -> None:
    """Add an arrow from one box to another."""
    target.sources.append(source)
    source.targets.append(target)


def laid_out(boxes: list[Box], from_top: bool = False) -> list[list[Box]]:
    """Place boxes in rows.

    Parameters
    ----------
    boxes : list of Box
        Each before its sources.
    from_top : bool
        Whether each box is placed right below its sources; else right above its targets.

    Returns
    -------
    list of list of Box
        The row of the result first.
    """
    for box in boxes:
        for source in box.sources:
            source.rank = max(source.rank, box.rank + 1)
    if from_top:
        top = max(box.rank for box in boxes)
        for box in boxes[::-1]:
            box.rank = min((source.rank - 1 for source in box.sources), default=top)
    rows = _rows(boxes)
    _order(rows)
    _place(rows)
    return rows


def _rows(boxes):
    """Make the rows of boxes, the result's first. An arrow over several rows bends in each."""
    rows = [[] for _ in range(1 + max(box.rank for box in boxes))]
    for box in boxes:
        rows[box.rank].append(box)
    for box in boxes:
        for i, source in enumerate(box.sources):
            below = box
            for rank in range(box.rank + 1, source.rank):
                bend = Box()
                bend.rank, bend.targets = rank, [below]
                rows[rank].append(bend)
                if below is box:
                    box.sources[i] = bend
                else:
                    below.sources = [bend]
                below = bend
            if below is not box:
                below.sources = [source]
                source.targets[source.targets.index(box)] = below
    return rows


def _order(rows):
    """Order each row to reduce crossings: by the mean place of neighbours, up and down."""
    best, fewest = [list(row) for row in rows], _crossings(rows)
    for sweep in range(12):
        upwards = sweep % 2 == 0
        for fixed, row in itertools.pairwise(rows if upwards else rows[::-1]):
            place = {id(box): i for i, box in enumerate(fixed)}
            wanted = {}
            for i, box in enumerate(row):
                near = [place[id(b)] for b in (box.targets if upwards else box.sources)]
                wanted[id(box)] = np.mean(near) if near else i
            row.sort(key=lambda box, wanted=wanted: wanted[id(box)])
        count = _crossings(rows)
        if count < fewest:
            best, fewest = [list(row) for row in rows], count
    for row, chosen in zip(rows, best, strict=True):
        row[:] = chosen


def _crossings(rows):
    total = 0
    for below, above in itertools.pairwise(rows):
        place = {id(box): i for i, box in enumerate(above)}
        ends = [(i, place[id(source)]) for i, box in enumerate(below) for source in box.sources]
        total += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(ends, 2))
    return total


def _place(rows):
    """Set horizontal positions: each box near its neighbours, without overlaps."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    bold, plain = FontProperties(size=_FONT, weight="bold"), FontProperties(size=_FONT - 1)

    def inches(text, font):
        return TextPath((0, 0), text, prop=font).get_extents().width / 72

    for box in (box for row in rows for box in row):
        for i, line in enumerate(box.lines):
            box.width = max(box.width, inches(line, plain if i else bold) + 0.26)
        if box.carries:
            box.width = max(box.width, 2 * inches(box.carries[0], plain) + 0.2)
    for row in rows[::-1]:
        for box in row:
            box.weight = max([box.weight, *(source.weight + 1.0 for source in box.sources)])
    for sweep in range(12):  # downwards align boxes with their sources, upwards with their targets
        downwards = sweep % 2 == 0
        for row in rows[::-1] if downwards else rows:
            wanted = []
            for box in row:
                near = (box.sources or box.targets) if downwards else (box.targets or box.sources)
                pull = [b.weight**2 for b in near]
                wanted.append(np.average([b.x for b in near], weights=pull) if near else box.x)
            gaps = [
                (a.width + b.width) / 2 + (_GAP if a.group == b.group else _WIDE_GAP)
                for a, b in itertools.pairwise(row)
            ]
            weights = [box.weight**2 for box in row]
            for box, x in zip(row, _spread(np.array(wanted), weights, gaps), strict=True):
                box.x = float(x)


def _spread(wanted, weights, gaps):
    """Find positions at least `gaps` apart, closest to the wanted ones (least squares).

    Minus the gaps it is isotonic regression: neighbours in the wrong order are pooled at their
    mean.
    """
    offsets = np.concatenate([[0.0], np.cumsum(gaps)])
    pools = []
    for value, weight in zip(wanted - offsets, weights, strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, weight_a, count_a), (b, weight_b, count_b) = pools[-2:]
            total = weight_a + weight_b
            pools[-2:] = [((a * weight_a + b * weight_b) / total, total, count_a + count_b)]
    return np.concatenate([np.full(count, value) for value, _, count in pools]) + offsets


def draw(
    rows: list[list[Box]],
    ax: Axes | None,
    fills: Mapping[str, tuple[str, str, str]],
    styles: Mapping[str, tuple[str, str, float, str]] | None = None,
    row_height: float = 0.66,
) -> Axes:
    """Draw boxes and arrows.

    Parameters
    ----------
    rows : list of lists of Box
        The result of `laid_out`.
    ax : matplotlib axes or None
        None for a new figure of the right size.
    fills : dict
        Kind of a box -> (fill, edge, legend text or "").
    styles : dict, optional
        Key of `Box.carries` -> (colour, line style, width, legend text).
    row_height : float
        Inches between the middles of two rows.

    Returns
    -------
    matplotlib axes
    """
    boxes = [box for row in rows for box in row]
    middle = _middles(rows, row_height)
    left = min(b.x - b.width / 2 for b in boxes) - (0.45 if any(b.group for b in boxes) else 0.25)
    right = max(b.x + b.width / 2 for b in boxes) + 0.25
    margin = max(0.0, (3.9 - (right - left)) / 2)  # the legend's width
    handles = _legend(boxes, fills, styles or {})
    above = 0.3 + 0.17 * -(-len(handles) // 3)
    top = middle[-1] + max(b.height for b in rows[-1]) / 2
    bottom = middle[0] - max(b.height for b in rows[0]) / 2 - 0.18
    ax, scale = sheet(ax, (left - margin, right + margin, bottom, top + above))
    _draw_frames(ax, boxes, middle, scale)
    for box in boxes:
        if box.lines:
            _draw_box(ax, box, middle[box.rank], fills[box.kind], scale)
            for arrow in _arrows(box, middle, row_height):
                _draw_arrow(ax, *arrow, styles or {}, scale)
    ax.legend(
        handles=handles, loc="upper center", ncols=3, frameon=False,
        fontsize=scale * (_FONT - 1), handlelength=1.6, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip
    return ax


def _middles(rows, row_height):
    """Compute the height of the middle of each row; rows of tall boxes take more."""
    tall = [max(box.height for box in row) for row in rows]
    steps = [row_height + max(0.0, (a + b) / 2 - 0.4) for a, b in itertools.pairwise(tall)]
    return np.concatenate([[0.0], np.cumsum(steps)])


def _draw_box(ax, box, y, fill, scale):
    from matplotlib.patches import FancyBboxPatch

    color, edge, _ = fill
    ax.add_patch(
        FancyBboxPatch(
            (box.x - box.width / 2 + 0.06, y - box.height / 2 + 0.06),
            box.width - 0.12, box.height - 0.12, boxstyle="round,pad=0.06",
            facecolor=color, edgecolor=edge, linewidth=scale * (1 if box.targets else 2),
        )
    )  # fmt: skip
    for i, line in enumerate(box.lines):
        ax.text(
            box.x, y + 0.15 * ((len(box.lines) - 1) / 2 - i), line, ha="center",
            va="center_baseline", fontsize=scale * (_FONT - bool(i)),
            fontweight="normal" if i else "bold",
        )  # fmt: skip


def _arrows(box, middle, row_height):
    """Yield (points, source) of each arrow that ends at a box."""
    y = middle[box.rank]
    sources = sorted(box.sources, key=lambda source: source.x)
    for i, source in enumerate(sources):  # the ends of arrows are spread over the box
        points = [(box.x + box.width * 0.6 * ((i + 0.5) / len(sources) - 0.5), y + box.height / 2)]
        while not source.lines:
            # An arrow passes tall boxes of a row in a straight line.
            points += [(source.x, middle[source.rank] + side * row_height / 4) for side in (-1, 1)]
            (source,) = source.sources
        points.append((source.x, middle[source.rank] - source.height / 2))
        yield points[::-1], source


def _draw_arrow(ax, points, source, styles, scale):
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path
    from matplotlib.patheffects import withStroke

    text, key = source.carries or ("", "")
    color, style, width, _ = styles.get(key, ("0.35", "-", 0.8, ""))
    path, codes = points[:1], [Path.MOVETO]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        path += [(x0, (y0 + y1) / 2), (x1, (y0 + y1) / 2), (x1, y1)]
        codes += [Path.CURVE4] * 3
    ax.add_patch(
        FancyArrowPatch(
            path=Path(path, codes), arrowstyle="-|>", mutation_scale=7 * scale,
            linewidth=width * scale, linestyle=style, color=color, zorder=0.5,
        )
    )  # fmt: skip
    if text and not source.is_labelled:  # once, where the first arrow leaves
        source.is_labelled = True
        x, y = points[0]
        ax.text(
            x + 0.06, y - 0.03, text, ha="left", va="top", fontsize=scale * (_FONT - 1),
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def _draw_frames(ax, boxes, middle, scale):
    """Draw a frame around each group."""
    from matplotlib.patches import FancyBboxPatch

    for group in dict.fromkeys(box.group for box in boxes if box.group):
        inside = [box for box in boxes if box.group == group]
        left = min(b.x - b.width / 2 for b in inside) - 0.28
        right = max(b.x + b.width / 2 for b in inside) + 0.1
        bottom = min(middle[b.rank] - b.height / 2 for b in inside) - 0.1
        top = max(middle[b.rank] + b.height / 2 for b in inside) + 0.1
        ax.add_patch(
            FancyBboxPatch(
                (left, bottom), right - left, top - bottom, boxstyle="round,pad=0.02",
                facecolor="0.96", edgecolor="0.6", linewidth=scale, linestyle="--", zorder=0.1,
            )
        )  # fmt: skip
        ax.text(
            left + 0.1, (bottom + top) / 2, group, fontsize=scale * _FONT, ha="center",
            va="center", rotation=90, color="0.25", fontstyle="italic",
        )  # fmt: skip


def _legend(boxes, fills, styles):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = {box.kind for box in boxes}
    carried = {box.carries[1] for box in boxes if box.carries and box.targets}
    return [
        Patch(facecolor=fill, edgecolor=edge, label=label)
        for kind, (fill, edge, label) in fills.items()
        if label and kind in kinds
    ] + [
        Line2D([], [], color=color, linestyle=style, linewidth=width, label=label)
        for key, (color, style, width, label) in styles.items()
        if label and key in carried
    ]
