"""Pictures. Each function draws on given axes, so that figures can be composed."""

from __future__ import annotations

import itertools
import os

import numpy as np

from tinybnn import quantizers
from tinybnn.autograd import Function, Tensor, as_array
from tinybnn.storage import write_atomic

__all__ = [
    "curves", "curves_through", "dots", "figure", "filters", "graph", "heat_map", "history",
    "images", "legend_beside", "logarithmic", "marks", "partition", "quantizer", "roofline",
    "save", "signs", "table", "trade_off", "whole_numbers", "zoom",
]  # fmt: skip
__dir__ = __all__.copy  # dir() shows what is public, and nothing else

# The colours of Okabe and Ito (2008), which people with any colour vision tell apart; without their
# yellow, too pale on white. Every picture takes its colours from here.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")

# One blue and one orange for everything binary: -1 and +1, float and packed.
MINUS, PLUS = PALETTE[:2]

_SHAPES = "osD^vPX<>pdh"
_STYLES = ("-", "--", "-.", ":")
_HATCHES = ("", "///", "...", "xxx")


def marks():
    """Yield (marker, colour, line style) for what is drawn first, second, ... in a picture.

    The first 12 differ in their marker; the first 28 in colour or line style, so that no two curves
    look alike; the first 84 in marker or colour.
    """
    for i in itertools.count():
        again = i // len(PALETTE)  # how often the colour has been used before
        yield (
            _SHAPES[i % len(_SHAPES)],
            PALETTE[i % len(PALETTE)],
            _STYLES[again % len(_STYLES)],
        )


def _fills():
    """Yield the colour and hatch of areas: the first 28 differ."""
    for hatch, color in itertools.cycle(itertools.product(_HATCHES, PALETTE)):
        yield {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def figure(*args, **kwargs):
    """A matplotlib figure with constrained layout; needs no display."""
    from matplotlib.figure import Figure

    return Figure(*args, layout="constrained", **kwargs)


def save(figure, path, format=None):
    """Write a figure to a file, atomically.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : str or PathLike
    format : str, optional
        Default: the suffix of `path`; "png" without one.

    Raises
    ------
    ValueError
        For a format that matplotlib does not write.
    OSError
        If the file cannot be written; an old file at `path` stays as it was.
    """
    format = format or os.path.splitext(path)[1][1:] or "png"
    write_atomic(path, lambda file: figure.savefig(file, format=format, dpi=110))


def history(axes, history):
    """Loss (left axis) and accuracy (right axis) over the epochs of a training.History.

    A regression, which has no accuracy, shows the losses of training and validation.
    """
    epochs, columns, kinds = history["epoch"], history.rows[0], marks()
    _curve(axes, next(kinds), epochs, history["loss"], "training loss")
    lines = axes.get_lines()
    if "accuracy" in columns:
        right = axes.twinx()
        for name, label in (
            ("accuracy", "training accuracy"), ("val_accuracy", "validation accuracy"),
        ):  # fmt: skip
            if name in columns:
                _curve(right, next(kinds), epochs, np.multiply(history[name], 100), label)
        right.set(ylabel="accuracy, %", ylim=(0, 102))
        lines = [*lines, *right.get_lines()]
    elif "val_loss" in columns:
        _curve(axes, next(kinds), epochs, history["val_loss"], "validation loss")
        lines = axes.get_lines()
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    _count_from_one(axes, len(epochs))
    _legend_below(axes, lines)


def _curve(axes, mark, x, y, label, first=0.0):
    """A line with markers: at all of few points, at some of many; `first` is the share of a gap
    before the first one."""
    marker, color, style = mark
    step = 1 if len(x) <= _FEW else len(x) // _FEW + 1
    axes.plot(
        x, y, style, color=color, label=label, marker=marker, markersize=5.5,
        markeredgecolor="white", markeredgewidth=0.4, linewidth=1.3,
        markevery=(int(first * step), step),
    )  # fmt: skip


_FEW = 25  # points of a curve that has a marker at each


def whole_numbers(axes, which):
    """Let an axis have ticks at whole numbers only.

    Parameters
    ----------
    which : 'x' or 'y'
    """
    axis = getattr(axes, f"{which}axis")
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _count_from_one(axes, count):
    """An x axis for epochs or rounds: whole numbers, from 1 to a count."""
    whole_numbers(axes, "x")
    if count == 1:
        axes.set_xlim(0.5, 1.5)


def _legend_below(axes, lines):
    """A legend in one row below the label of the x axis, where it hides nothing."""
    from matplotlib.transforms import ScaledTranslation

    below = ScaledTranslation(0, -36 / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        lines, [line.get_label() for line in lines], loc="upper center", ncols=len(lines),
        bbox_to_anchor=(0.5, 0), bbox_transform=axes.transAxes + below, frameon=False,
        fontsize="small", borderaxespad=0.0, columnspacing=1.2,
    )  # fmt: skip


def signs(axes, array, title=""):
    """A matrix of ±1 as an image: blue is -1, orange is +1; NaN is left blank.

    Parameters
    ----------
    array : (rows, columns) of ±1
    """
    from matplotlib.colors import ListedColormap

    axes.imshow(array, cmap=ListedColormap([MINUS, PLUS]), vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=title)


def filters(axes, weight, columns=8, title=""):
    """Convolution filters side by side, one small tile each.

    Parameters
    ----------
    weight : (O, C, kh, kw) of ±1
        The first input channel of each filter is shown.
    """
    count, _, height, width = weight.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for i, tile in enumerate(weight[:, 0]):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = tile
    signs(axes, sheet, title)
    axes.set_frame_on(False)


def table(axes, rows, header):
    """A table of text.

    Parameters
    ----------
    rows : sequence of sequences of str
    header : sequence of str
    """
    axes.axis("off")
    drawn = axes.table(rows, colLabels=header, loc="center", cellLoc="left", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(10)
    drawn.scale(1, 1.6)
    drawn.auto_set_column_width(range(len(header)))


def quantizer(axes, q, title=None):
    """What a quantizer computes over [-2, 2], its pseudo-gradient, and its surrogate.

    A weight quantizer, whose values depend on all weights of a filter, sees the points of the
    drawing as one filter.

    Parameters
    ----------
    q : Quantizer or name
    title : str, optional
        By default the name of the quantizer.
    """
    found = quantizers.get(q)
    if found is None:
        raise ValueError("quantizer: expects a quantizer, got None")
    x = np.linspace(-2, 2, 2001)
    for position in (axes.axhline, axes.axvline):
        position(0, color="0.85", linewidth=0.8, zorder=0)
    axes.plot(x, found(x[None])[0], color=PALETTE[-1], linewidth=1, label="forward")
    axes.plot(x, found.pseudo_gradient(x[None])[0], color=PLUS, label="pseudo-gradient")
    axes.plot(x, found.surrogate(x[None])[0], "--", color=MINUS, label="surrogate")
    axes.set(xlabel="x", xlim=(-2, 2), title=type(found).__name__ if title is None else title)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.7 * high), high)  # nothing is drawn right below: the legend's place
    axes.legend(loc="lower right", frameon=False, fontsize="small")


def partition(axes, labels, parts, classes=None):
    """Who has which samples: a bar for each client, a colour (and hatch) for each class.

    Parameters
    ----------
    labels : (N,) integers
    parts : list of arrays
        Positions of each client's samples, as `federated.iid` and its kin give them.
    classes : sequence of str, optional
        Names of the classes; by default the labels themselves.
    """
    labels = np.asarray(labels)
    found = np.unique(labels)
    counts = np.array([[np.count_nonzero(labels[part] == c) for c in found] for part in parts])
    left = np.cumsum(counts, axis=1) - counts  # (clients, classes)
    for i, (c, fill) in enumerate(zip(found, _fills(), strict=False)):
        name = str(c) if classes is None else classes[c]
        axes.barh(np.arange(len(parts)), counts[:, i], 0.9, left[:, i], label=name, **fill)
    axes.set(xlabel="samples", ylabel="client", ylim=(len(parts) - 0.4, -0.6))
    whole_numbers(axes, "y")
    axes.legend(
        title="class", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
        fontsize="small", handlelength=1.0, borderaxespad=0.0, ncols=1 + (len(found) - 1) // 20,
    )  # fmt: skip


def images(axes, images, columns=10, title="", labels=None):
    """Images side by side in rows, from white (0) to black (1); three channels in colour.

    Parameters
    ----------
    images : sequence of (C, H, W) arrays
        Of one shape, values from 0 to 1, C = 1 or 3.
    columns : int
    title : str
    labels : sequence of str, optional
        One for each image, written below it.
    """
    images = np.asarray(images, np.float32)
    count, channels, height, width = images.shape
    gap = 1 if labels is None else 2 + height // 4
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap), columns * (width + 1) - 1, channels), np.nan)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
        if labels is not None:
            place = left + (width - 1) / 2, top + height - 0.5 + gap / 2
            axes.text(*place, labels[i], ha="center", va="center", fontsize="x-small")
    if channels == 1:
        axes.imshow(sheet[..., 0], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(np.nan_to_num(sheet, nan=1.0), interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=title)
    axes.set_frame_on(False)


def heat_map(axes, array, columns=None, rows=None, xlabel="", ylabel="", limits=(0, 1)):
    """A matrix as colours from blue through white to orange; with names, its numbers as well.

    Parameters
    ----------
    array : (rows, columns)
    columns, rows : sequences of str, optional
        Names. With `columns` each cell shows its number.
    limits : (float, float)
        The values of full blue and full orange.
    """
    from matplotlib.colors import LinearSegmentedColormap

    array = np.asarray(array)
    colors = LinearSegmentedColormap.from_list("signs", [MINUS, "white", PLUS])
    drawn = axes.imshow(array, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.set(xticks=[], yticks=[], xlabel=xlabel, ylabel=ylabel)
    if columns is None:
        axes.get_figure().colorbar(drawn, ax=axes)
        return
    slanted = {}
    if max(map(len, columns)) > 6:
        slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(columns)), columns, fontsize="small", **slanted)
    axes.set_yticks(range(len(rows)), rows, fontsize="small")
    for (i, j), value in np.ndenumerate(array):
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize="small")


def curves(axes, lines, ylabel, xlabel="epoch", legend=True):
    """Several curves over the epochs, from 1, with markers.

    Parameters
    ----------
    lines : dict
        Label -> a value for each epoch.
    legend : bool
        Whether to add a legend, beside the axes.
    """
    points = {label: (np.arange(1, len(y) + 1), y) for label, y in lines.items()}
    curves_through(axes, points)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _count_from_one(axes, max(map(len, lines.values()), default=0))
    if legend:
        legend_beside(axes)


def curves_through(axes, points):
    """Several curves, each through its own points, with markers; without a legend.

    Parameters
    ----------
    points : dict
        Label -> (x, y), two sequences.
    """
    for i, (mark, (label, (x, y))) in enumerate(zip(marks(), points.items(), strict=False)):
        _curve(axes, mark, x, y, label, first=i / len(points))


def dots(figure, groups, names, ylabel):
    """Values side by side as dots with their standard deviations, on an axis zoomed to them.

    Where the values fall into two ranges far apart, the axis is broken: each range has axes of its
    own, above one another.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Still empty.
    groups : dict
        Label, one marker each -> for each name a pair of value and standard deviation. NaN is left
        out.
    names : sequence of str
        Along the x axis.

    Returns
    -------
    list of axes
        From top to bottom.
    """
    values, errors = np.moveaxis(np.array([*groups.values()], float), -1, 0)  # (groups, names)
    cut = _widest_gap(values)
    if cut is None:
        parts = [(figure.subplots(), np.isfinite(values))]
    else:
        upper, lower = values > cut, values < cut  # NaN is in neither
        heights = (3, 1) if upper.sum() >= lower.sum() else (1, 3)
        both = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        parts = [*zip(both, (upper, lower), strict=True)]
        _break_between(*both)
    width = min(0.8 / len(groups), 0.15)
    for axes, shown in parts:
        for i, ((marker, color, _), label) in enumerate(zip(marks(), groups, strict=False)):
            x = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
            spread = np.where(errors[i] > 0, errors[i], np.nan)
            axes.errorbar(
                x[shown[i]], values[i, shown[i]], spread[shown[i]], fmt=marker, color=color,
                label=label, markersize=6, markeredgecolor="white", markeredgewidth=0.5,
                capsize=2, elinewidth=1,
            )  # fmt: skip
        axes.grid(True, axis="y", color="0.92")
        axes.set_axisbelow(True)
        for border in range(1, len(names)):
            axes.axvline(border - 0.5, color="0.85", linewidth=0.8, zorder=0)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.margins(y=0.08 if cut is None or shown.sum() > (~shown).sum() else 0.25)
    last = parts[-1][0]
    last.set_xticks(range(len(names)), names)
    if cut is None:
        last.set(ylabel=ylabel)
    else:
        figure.supylabel(ylabel, fontsize="medium")
    legend_beside(parts[0][0])
    return [axes for axes, _ in parts]


def _widest_gap(values):
    """A value in the middle of a gap much wider than what lies on each side of it; else None."""
    rising = np.sort(values[np.isfinite(values)])
    if len(rising) < 3:
        return None
    i = int(np.diff(rising).argmax())
    gap = rising[i + 1] - rising[i]
    widest_side = max(rising[i] - rising[0], rising[-1] - rising[i + 1])
    return (rising[i] + rising[i + 1]) / 2 if gap > 3 * widest_side > 0 else None


def _break_between(upper, lower):
    """Show two axes above one another as one with a part of its y axis left out."""
    upper.spines.bottom.set_visible(False)
    lower.spines.top.set_visible(False)
    upper.tick_params(bottom=False)
    slash = {
        "marker": [(-1, -0.5), (1, 0.5)], "markersize": 8, "linestyle": "none", "color": "black",
        "markeredgewidth": 1, "clip_on": False,
    }  # fmt: skip
    upper.plot([0, 1], [0, 0], transform=upper.transAxes, **slash)
    lower.plot([0, 1], [1, 1], transform=lower.transAxes, **slash)


def zoom(axes):
    """Let the y axis begin above the first tenth of curves that rise, if that takes half of it.

    So the low values of the first epochs or rounds do not press all that follows into one line.
    """
    lines = [np.asarray(line.get_ydata()) for line in axes.get_lines()]
    low, high = (f(np.concatenate(lines)) for f in (np.min, np.max))
    start = min(line[len(line) // 10 :].min() for line in lines)
    if start - low > high - start > 0:
        axes.set_ylim(start - 0.05 * (high - start), high + 0.05 * (high - start))


def logarithmic(axes, which):
    """Make an axis logarithmic once all is drawn, with its numbers as they are said: 0.5, 1, 2.

    Parameters
    ----------
    which : 'x' or 'y'
    """
    from matplotlib import ticker

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def trade_off(axes, points, xlabel, ylabel, legend=True):
    """What is gained against what it costs: a marker for each.

    The axis of the costs is logarithmic if they differ by a factor of 3 or more.

    Parameters
    ----------
    points : dict
        Label -> (cost, gain, standard deviation of the gain).
    legend : bool
    """
    for (marker, color, _), (label, (x, y, error)) in zip(marks(), points.items(), strict=False):
        axes.errorbar(
            x, y, error or None, fmt=marker, color=color, label=label, markersize=8,
            markeredgecolor="white", markeredgewidth=0.5, capsize=2,
        )  # fmt: skip
    costs = [x for x, _, _ in points.values()]
    is_wide = min(costs) > 0 and max(costs) >= 3 * min(costs)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if is_wide:
        logarithmic(axes, "x")
    axes.grid(True, color="0.92")
    axes.set_axisbelow(True)
    if legend:
        legend_beside(axes)


def legend_beside(axes):
    """A legend to the right of the axes, where it hides nothing."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize="small",
        borderaxespad=0.0,
    )  # fmt: skip


# ------------------------------------------------------------------------------------ the roofline


def roofline(axes, rows, peak, bandwidth):
    """Products of signs a second against products a byte, below the roof of the machine.

    A kernel can be no faster than the registers count, nor than the memory delivers (the roofline
    of Williams, Waterman, Patterson 2009). The bytes of a point are what it reads and writes at
    least; what a cache holds does not wait for memory, and may lie above the slope.

    Parameters
    ----------
    axes : matplotlib axes
    rows : list of dict
        Of a benchmark: ``name``, ``shape``, ``products``, ``bytes``, ``ours_s``, and ``peer``,
        ``peer_s``, ``peer_bytes``. A row without products or bytes is left out; of rows that
        differ only in the peer one is drawn. What NumPy's sgemm does with floats is drawn too.
    peak : float
        Products a second that the registers count.
    bandwidth : float
        Bytes a second.
    """
    ours, sgemm = _points(rows)
    points = [point for group in (*ours.values(), sgemm) for point in group]
    xs = [x for x, _, _ in points] + [peak / bandwidth]
    low, high = min(xs) / 3, max(xs) * 3
    x = np.array([low, peak / bandwidth, high])
    axes.plot(x, np.minimum(peak, bandwidth * x) / 1e9, color="0.2", zorder=1)
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), xlabel="products of signs a byte moved",
        ylabel="Gbit-MAC/s",
    )  # fmt: skip
    axes.grid(True, which="major", color="0.92", zorder=0)
    for place, text, offset in (
        ((peak / bandwidth, peak / 1e9), f"registers: {peak / 1e9:,.0f} Gbit-MAC/s", (4, 5)),
        ((low, bandwidth * low / 1e9), f"memory: {bandwidth / 1e9:.0f} GB/s", (24, 6)),
    ):
        axes.annotate(
            text, place, offset, textcoords="offset points", ha="left", fontsize="small",
            color="0.2",
        )  # fmt: skip
    drawn, entries = [], []
    for (marker, color, _), (name, group) in zip(marks(), ours.items(), strict=False):
        entries.append((_dots(axes, group, marker, color), name))
        for x, y, shape in group:
            drawn.append((x, y))
            entries.append((_nothing(), f"{len(drawn):>2}  {shape}"))
    if sgemm:
        entries.append((_dots(axes, sgemm, "x", "0.45"), "NumPy sgemm, on floats"))
    handles, labels = zip(*entries, strict=True) if entries else ((), ())
    axes.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
        fontsize="small", handlelength=1.0, labelspacing=0.3, borderaxespad=0.0,
    )  # fmt: skip
    _number(axes, drawn)


def _points(rows):
    """Ours as {name: [(products a byte, Gbit-MAC/s, shape)]}, and those of NumPy's sgemm."""
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


def _dots(axes, points, marker, color):
    """Draw points; returns what stands for them in the legend."""
    edge = {} if marker == "x" else {"markeredgecolor": "white"}
    x, y, _ = zip(*points, strict=True)
    [line] = axes.plot(x, y, marker, color=color, markersize=8, zorder=3, **edge)
    return line


def _nothing():
    """An entry of a legend that has a text only."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="")


def _number(axes, points):
    """Write 1, 2, 3, ... beside points, each where most room is."""
    from matplotlib.patheffects import withStroke

    axes.figure.draw_without_rendering()  # from here on the axes keep their place
    points_a_pixel = 72 / axes.figure.dpi
    places = [axes.transData.transform(point) * points_a_pixel for point in points]
    taken = list(places)
    for i, (point, place) in enumerate(zip(points, places, strict=True)):
        others = np.array(taken[:i] + taken[i + 1 :]).reshape(-1, 2)
        angles = np.arange(12) * np.pi / 6
        ways = 9 * np.stack([np.cos(angles), np.sin(angles)], 1)  # (12, 2) points
        distance = np.linalg.norm((place + ways)[:, None] - others, axis=2)  # (12, others)
        way = ways[distance.min(1, initial=99.0).argmax()]
        axes.annotate(
            str(i + 1), point, way, textcoords="offset points", ha="center", va="center",
            fontsize=7.5, zorder=4, path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
        taken.append(place + way)


# ------------------------------------------------------------------------------ the autograd graph

_MOST_BOXES = 500
_ROW, _GAP = 0.66, 0.22  # inches between the middles of two rows, and between neighbours in a row
_FONT = 8.0  # points
_COLORS = {  # fill, edge
    "operation": ("#ffffff", MINUS),
    "leaf": ("#fae7bf", PLUS),
    "constant": ("#eeeeee", "0.6"),
}


def graph(tensor, axes=None, names=()):
    """The autograd graph behind a Tensor: from the leaves at the top down to the Tensor.

    A box is an operation, with the shapes of what went in and what came out, or a leaf with its
    shape. Arrows run as the data did; `backward` goes the other way. Numbers are left out.

    Parameters
    ----------
    tensor : Tensor
    axes : matplotlib axes, optional
        By default a new figure of the right size.
    names : dict or sequence of (name, Tensor)
        What to call leaves, for example ``model.named_parameters()``.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    RuntimeError
        If `backward` has freed the graph: draw before it, or use ``retain_graph=True``.
    """
    boxes = _boxes(tensor, dict(names))
    rows = _rows(boxes)
    _order(rows)
    _place(rows)
    return _draw(rows, axes)


class _Box:
    """A node of the picture, or (without lines of text) a bend of an arrow that passes a row."""

    def __init__(self, kind="", lines=()):
        self.kind, self.lines = kind, lines
        self.sources, self.targets = [], []  # boxes whose arrows end and begin here
        self.rank = 0  # rows above the last one
        self.x = 0.0
        self.weight = 0.1  # the longest way from a leaf: what makes way, and for whom
        self.width = 0.0
        self.height = 0.14 * len(lines) + 0.12 if lines else 0.0


def _boxes(tensor, names):
    """One box for each node, the last operation first, each before those that it was made from."""
    name_of = {id(as_array(t)): name for name, t in names.items()}
    root = tensor.function or tensor
    found, order = {}, []
    stack = [(id(root), root, tensor.shape, False)]  # depth-first; Python's own would overflow
    while stack:
        key, node, shape, is_complete = stack.pop()
        if is_complete:
            for source_key, *_ in _sources(node):
                found[key].sources.append(found[source_key])
                found[source_key].targets.append(found[key])
            order.append(found[key])
        elif key not in found:
            if len(found) == _MOST_BOXES:
                raise ValueError(f"graph: more than {_MOST_BOXES} nodes make no picture")
            if isinstance(node, Function):
                found[key] = _operation(node, shape)
            else:
                kind = "leaf" if isinstance(node, Tensor) and node.requires_grad else "constant"
                found[key] = _Box(kind, (name_of.get(id(as_array(node)), kind), str(shape)))
            stack.append((key, node, shape, True))
            stack.extend((*source, False) for source in _sources(node))
    return order[::-1]


def _sources(node):
    """(key, what it is, shape) of each input of an operation that gets a box: not of numbers."""
    if not isinstance(node, Function):
        return
    if node.edges is None:
        raise RuntimeError(
            f"graph: the graph behind {node} was freed by backward; draw it before, or pass "
            "retain_graph=True there"
        )
    for i, (edge, shape) in enumerate(zip(node.edges, node.shapes, strict=True)):
        saved = node._inputs[i]
        if edge is not None:
            yield id(edge), edge, shape
        elif shape != ():  # a constant; where its values were saved it is known when met again
            yield (id(node), i) if saved is None else id(as_array(saved)), saved, shape


def _operation(function, shape):
    """The box of an operation with an output of `shape`."""
    inputs = [s for s in function.shapes if s != ()]
    text = str(shape)
    if any(s != shape for s in inputs):
        text = ", ".join(map(str, inputs)) + " → " + text
    name = str(function)
    if isinstance(function, quantizers.Quantize):  # under its own name, with or without its scale
        name = type(getattr(function.quantizer, "scaled", function.quantizer)).__name__
    return _Box("operation", (name, text))


def _rows(boxes):
    """Rows of boxes, the result's first. An arrow over several rows gets a bend in each."""
    for box in boxes:
        for source in box.sources:
            source.rank = max(source.rank, box.rank + 1)
    rows = [[] for _ in range(1 + max(box.rank for box in boxes))]
    for box in boxes:
        rows[box.rank].append(box)
    for box in boxes:
        for i, source in enumerate(box.sources):
            below = box
            for rank in range(box.rank + 1, source.rank):
                bend = _Box()
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
    """Order each row so that few arrows cross: by the mean place of neighbours, up and down."""
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
    """Horizontal positions: each box near its neighbours, none on top of another."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    fonts = FontProperties(size=_FONT, weight="bold"), FontProperties(size=_FONT - 1)
    for box in (box for row in rows for box in row):
        for line, font in zip(box.lines, fonts, strict=False):
            points = TextPath((0, 0), line, prop=font).get_extents().width
            box.width = max(box.width, points / 72 + 0.26)
    for row in rows[::-1]:
        for box in row:
            box.weight = max([box.weight, *(source.weight + 1.0 for source in box.sources)])
    for sweep in range(12):  # down each box stands below its sources, up above its targets
        downwards = sweep % 2 == 0
        for row in rows[::-1] if downwards else rows:
            wanted = []
            for box in row:
                near = (box.sources or box.targets) if downwards else (box.targets or box.sources)
                pull = [b.weight**2 for b in near]
                wanted.append(np.average([b.x for b in near], weights=pull) if near else box.x)
            gaps = [(a.width + b.width) / 2 + _GAP for a, b in itertools.pairwise(row)]
            weights = [box.weight**2 for box in row]
            for box, x in zip(row, _spread(np.array(wanted), weights, gaps), strict=True):
                box.x = float(x)


def _spread(wanted, weights, gaps):
    """Positions at least `gaps` apart, closest to the wanted ones (least squares).

    Without the gaps it is the regression by a rising sequence: neighbours in the wrong order are
    pooled at their mean.
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


def _draw(rows, axes):
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
    from matplotlib.path import Path

    boxes = [box for row in rows for box in row]
    left = min(b.x - b.width / 2 for b in boxes) - 0.15
    right = max(b.x + b.width / 2 for b in boxes) + 0.15
    margin = max(0.0, (3.9 - (right - left)) / 2)  # the legend's width
    left, right = left - margin, right + margin
    bottom, top = -0.35, (len(rows) - 1) * _ROW + 0.65
    if axes is None:
        drawn = Figure(figsize=(right - left, top - bottom))  # one unit is one inch
        axes, scale = drawn.add_axes((0, 0, 1, 1)), 1.0
    else:
        drawn = axes.get_figure()
        width, height = drawn.get_size_inches() * axes.get_position().size
        scale = min(1.0, width / (right - left), height / (top - bottom))
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.axis("off")

    for box in boxes:
        y = box.rank * _ROW
        if not box.lines:
            continue
        fill, edge = _COLORS[box.kind]
        axes.add_patch(
            FancyBboxPatch(
                (box.x - box.width / 2 + 0.06, y - box.height / 2 + 0.06),
                box.width - 0.12, box.height - 0.12, boxstyle="round,pad=0.06",
                facecolor=fill, edgecolor=edge, linewidth=scale * (2 if box.rank == 0 else 1),
            )
        )  # fmt: skip
        for line, size, weight, shift in zip(
            box.lines, (_FONT, _FONT - 1), ("bold", "normal"), (0.075, -0.075), strict=True
        ):
            axes.text(
                box.x, y + shift, line, fontsize=scale * size, fontweight=weight,
                ha="center", va="center_baseline",
            )  # fmt: skip
        arrows = sorted(box.sources, key=lambda source: source.x)
        for i, source in enumerate(arrows):  # the points of arrival are spread over the box
            x = box.x + box.width * 0.6 * ((i + 0.5) / len(arrows) - 0.5)
            points = [(x, y + box.height / 2)]
            while not source.lines:
                points.append((source.x, source.rank * _ROW))
                (source,) = source.sources
            points.append((source.x, source.rank * _ROW - source.height / 2))
            points.reverse()
            path, codes = points[:1], [Path.MOVETO]
            for (x0, y0), (x1, y1) in itertools.pairwise(points):
                path += [(x0, (y0 + y1) / 2), (x1, (y0 + y1) / 2), (x1, y1)]
                codes += [Path.CURVE4] * 3
            axes.add_patch(
                FancyArrowPatch(
                    path=Path(path, codes), arrowstyle="-|>", mutation_scale=7 * scale,
                    linewidth=0.8 * scale, color="0.35", zorder=0.5,
                )
            )  # fmt: skip
    labels = {"operation": "operation", "leaf": "leaf that requires grad", "constant": "constant"}
    axes.legend(
        handles=[
            Patch(facecolor=_COLORS[kind][0], edgecolor=_COLORS[kind][1], label=label)
            for kind, label in labels.items()
            if any(box.kind == kind for box in boxes)
        ],
        loc="upper center", ncols=3, frameon=False, fontsize=scale * (_FONT - 1),
        handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip
    return drawn
