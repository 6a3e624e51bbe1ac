"""Colours, marks, figures and files shared by all pictures."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeAlias, TypeVar, overload

import numpy as np

from tinybnn.storage import write_atomic

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.lines import Line2D

    Place: TypeAlias = Axes | FigureBase | None  # the argument `ax` of a picture

_P = ParamSpec("_P")
_R = TypeVar("_R")

# The colours of Okabe and Ito (2008), distinguishable with any colour vision, without their yellow,
# too pale on white. All pictures use them.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")

# Blue and orange for everything binary: -1 and +1, float and packed.
MINUS, PLUS = PALETTE[:2]

_SHAPES = "osD^vPX<>pdh"
_STYLES = ("-", "--", "-.", ":")
_HATCHES = ("", "///", "...", "xxx")


def marks() -> Iterator[tuple[str, str, str]]:
    """Yield (marker, colour, line style) for the first, second, ... element of a picture.

    The first 12 differ in marker; the first 28 in colour or line style, so that no two curves look
    alike; the first 84 in marker or colour.
    """
    for i in itertools.count():
        again = i // len(PALETTE)  # earlier uses of the colour
        yield (
            _SHAPES[i % len(_SHAPES)],
            PALETTE[i % len(PALETTE)],
            _STYLES[again % len(_STYLES)],
        )


def fills() -> Iterator[dict[str, Any]]:
    """Yield matplotlib's options for filled areas; the first 28 differ in colour or hatch."""
    for hatch, color in itertools.cycle(itertools.product(_HATCHES, PALETTE)):
        yield {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def tint(color: str, share: float) -> str:
    """Mix a colour "#rrggbb" with white; `share`, from 0 to 1, is its part."""
    mixed = (round(255 - share * (255 - value)) for value in bytes.fromhex(color[1:]))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def figure(*args: Any, **kwargs: Any) -> Figure:
    """Make a matplotlib figure with constrained layout; it needs no display."""
    from matplotlib.figure import Figure

    return Figure(*args, layout="constrained", **kwargs)


def save(figure: Figure, path: str | os.PathLike[str], format: str | None = None) -> None:
    """Write a figure to a file, atomically.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : str or PathLike
    format : str, optional
        Default: the suffix of `path`, or "png" if it has none.

    Raises
    ------
    ValueError
        For a format that matplotlib does not write.
    OSError
        If the file cannot be written; an existing file at `path` stays unchanged.
    """
    format = format or os.path.splitext(path)[1][1:] or "png"
    write_atomic(path, lambda file: figure.savefig(file, format=format, dpi=110))


class _Decorator(Protocol):
    @overload
    def __call__(self, draw: Callable[_P, None]) -> Callable[_P, Axes]: ...
    @overload
    def __call__(self, draw: Callable[_P, _R]) -> Callable[_P, _R]: ...


@overload
def picture(draw: Callable[_P, None]) -> Callable[_P, Axes]: ...
@overload
def picture(draw: Callable[_P, _R]) -> Callable[_P, _R]: ...
@overload
def picture(draw: None = None, *, size: tuple[float, float] | None) -> _Decorator: ...
def picture(
    draw: Callable[..., Any] | None = None, *, size: tuple[float, float] | None = (6.4, 4.0)
) -> Any:
    """Decorate a function that draws on ``ax=``, so that it returns these axes.

    Without ``ax`` it draws on a new figure; a Figure stands for axes that fill it. The axes may
    also come first, before all other arguments. If the function itself returns something, such as
    a figure, that is returned instead.

    Parameters
    ----------
    draw : callable, optional
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


def sheet(ax: Axes | None, limits: tuple[float, float, float, float]) -> tuple[Axes, float]:
    """Set up axes without ticks in which a unit is one inch, or less if given axes are small.

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
        Inches per unit, at most 1, which scales fonts and lines.
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


def whole_numbers(ax: Axes, which: str) -> Axes:
    """Restrict the ticks of an axis to whole numbers. Returns the axes.

    Parameters
    ----------
    which : 'x' or 'y'
    """
    axis = getattr(ax, f"{which}axis")
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return ax


def logarithmic(ax: Axes, which: str) -> Axes:
    """Make an axis logarithmic, with plain numbers (0.5, 1, 2); call it after drawing.

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


def zoom(ax: Axes) -> Axes:
    """Cut off the first tenth of rising curves at the y axis, if it takes more than half of it.

    The low values of the first epochs or rounds then do not flatten the rest of the curves. Returns
    the axes.
    """
    lines = [np.asarray(line.get_ydata()) for line in ax.get_lines()]
    low, high = (f(np.concatenate(lines)) for f in (np.min, np.max))
    start = min(line[len(line) // 10 :].min() for line in lines)
    if start - low > high - start > 0:
        ax.set_ylim(start - 0.05 * (high - start), high + 0.05 * (high - start))
    return ax


def legend_beside(ax: Axes, handles: Sequence[Artist] | None = None) -> Axes:
    """Add a legend to the right of the axes, where it hides nothing. Returns the axes.

    Parameters
    ----------
    ax : matplotlib axes
    handles : list of artists, optional
        Default: all that have a label.
    """
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
        fontsize="small", borderaxespad=0.0,
    )  # fmt: skip
    return ax


def legend_below(ax: Axes, lines: Sequence[Line2D]) -> None:
    """Add a legend in one row below the label of the x axis, where it hides nothing."""
    from matplotlib.transforms import ScaledTranslation

    below = ScaledTranslation(0, -36 / 72, ax.figure.dpi_scale_trans)
    ax.legend(
        lines, [line.get_label() for line in lines], loc="upper center", ncols=len(lines),
        bbox_to_anchor=(0.5, 0), bbox_transform=ax.transAxes + below, frameon=False,
        fontsize="small", borderaxespad=0.0, columnspacing=1.2,
    )  # fmt: skip
