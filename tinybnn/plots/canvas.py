"""Colours, marks, figures and files: what all pictures share."""

from __future__ import annotations

import functools
import itertools
import os

import numpy as np

from tinybnn.storage import write_atomic

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


def fills():
    """Yield the colour and hatch of areas: the first 28 differ."""
    for hatch, color in itertools.cycle(itertools.product(_HATCHES, PALETTE)):
        yield {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def tint(color, share):
    """A colour of the palette mixed with white: `share` is what is left of it."""
    mixed = (round(255 - share * (255 - value)) for value in bytes.fromhex(color[1:]))
    return "#" + "".join(f"{value:02x}" for value in mixed)


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


def picture(draw=None, *, size=(6.4, 4.0)):
    """Decorate a function that draws: ``ax=`` is where it draws, and what it returns.

    Without ``ax`` it draws on a new figure; a Figure stands for axes that fill it. The axes may
    also come first, before all other arguments. What the function itself returns, such as a
    figure, goes before.

    Parameters
    ----------
    size : (float, float) or None
        Inches of the new figure; None for functions that make their own, of the right size.
    """
    if draw is None:
        return functools.partial(picture, size=size)

    @functools.wraps(draw)
    def drawn(*args, ax=None, **kwargs):
        from matplotlib.axes import Axes
        from matplotlib.figure import FigureBase

        if args and isinstance(args[0], Axes | FigureBase):
            ax, *args = args
        if isinstance(ax, FigureBase):
            ax = ax.subplots()
        if ax is None and size is not None:
            ax = figure(figsize=size).subplots()
        if not isinstance(ax, Axes | None):
            raise TypeError(
                f"{draw.__name__}: ax must be matplotlib axes, got {type(ax).__name__}; "
                "figure.subplots() makes some"
            )
        result = draw(*args, ax=ax, **kwargs)
        return ax if result is None else result

    return drawn


def sheet(ax, limits):
    """Axes without ticks in which one unit is one inch, or less where given axes are small.

    Parameters
    ----------
    ax : matplotlib axes or None
        None for a new figure of the right size.
    limits : (float, float, float, float)
        Left, right, bottom, top.

    Returns
    -------
    ax : matplotlib axes
    scale : float
        Inches of a unit, at most 1: the factor of fonts and lines.
    """
    from matplotlib.figure import Figure

    left, right, bottom, top = limits
    scale = 1.0
    if ax is None:
        ax = Figure(figsize=(right - left, top - bottom)).add_axes((0, 0, 1, 1))
    else:
        width, height = ax.get_figure().get_size_inches() * ax.get_position().size
        scale = min(1.0, width / (right - left), height / (top - bottom))
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.axis("off")
    return ax, scale


def whole_numbers(ax, which):
    """Let an axis have ticks at whole numbers only. Returns the axes.

    Parameters
    ----------
    which : 'x' or 'y'
    """
    axis = getattr(ax, f"{which}axis")
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return ax


def logarithmic(ax, which):
    """Make an axis logarithmic once all is drawn, with its numbers as they are said: 0.5, 1, 2.

    Returns the axes.

    Parameters
    ----------
    which : 'x' or 'y'
    """
    from matplotlib import ticker

    ax.set(**{f"{which}scale": "log"})
    axis = getattr(ax, f"{which}axis")
    low, high = axis.get_view_interval()
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
    return ax


def zoom(ax):
    """Let the y axis begin above the first tenth of curves that rise, if that takes half of it.

    So the low values of the first epochs or rounds do not press all that follows into one line.
    Returns the axes.
    """
    lines = [np.asarray(line.get_ydata()) for line in ax.get_lines()]
    low, high = (f(np.concatenate(lines)) for f in (np.min, np.max))
    start = min(line[len(line) // 10 :].min() for line in lines)
    if start - low > high - start > 0:
        ax.set_ylim(start - 0.05 * (high - start), high + 0.05 * (high - start))
    return ax


def legend_beside(ax, handles=None):
    """A legend to the right of the axes, where it hides nothing. Returns the axes.

    Parameters
    ----------
    handles : list of artists, optional
        By default all that have a label.
    """
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
        fontsize="small", borderaxespad=0.0,
    )  # fmt: skip
    return ax


def legend_below(ax, lines):
    """A legend in one row below the label of the x axis, where it hides nothing."""
    from matplotlib.transforms import ScaledTranslation

    below = ScaledTranslation(0, -36 / 72, ax.figure.dpi_scale_trans)
    ax.legend(
        lines, [line.get_label() for line in lines], loc="upper center", ncols=len(lines),
        bbox_to_anchor=(0.5, 0), bbox_transform=ax.transAxes + below, frameon=False,
        fontsize="small", borderaxespad=0.0, columnspacing=1.2,
    )  # fmt: skip
