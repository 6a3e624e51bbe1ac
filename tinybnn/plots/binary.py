"""The computation of a binary layer: quantizers, convolutions on bits, sums and thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinybnn import deploy, quantizers
from tinybnn.plots.canvas import (
    MINUS,
    PALETTE,
    PLUS,
    legend_beside,
    picture,
    sheet,
    tint,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from tinybnn.nn import Module
    from tinybnn.plots.canvas import Place

_AGREE = PALETTE[2]


@picture
def quantizer(q: quantizers.Quantizer | str, title: str | None = None, *, ax: Place = None) -> None:
    """Plot a quantizer over [-2, 2] with its pseudo-gradient and its surrogate.

    A weight quantizer, whose values depend on all weights of a filter, takes the points of the
    drawing as one filter.

    Parameters
    ----------
    q : Quantizer or name
    title : str, optional
        Default: the name of the quantizer.
    """
    function = quantizers.get(q)
    if function is None:
        raise ValueError("quantizer: expects a quantizer, got None")
    x = np.linspace(-2, 2, 2001)
    for position in (ax.axhline, ax.axvline):
        position(0, color="0.85", linewidth=0.8, zorder=0)
    ax.plot(x, function(x[None])[0], color=PALETTE[-1], linewidth=1, label="forward")
    ax.plot(x, function.pseudo_gradient(x[None])[0], color=PLUS, label="pseudo-gradient")
    ax.plot(x, function.surrogate(x[None])[0], "--", color=MINUS, label="surrogate")
    ax.set(xlabel="x", xlim=(-2, 2), title=type(function).__name__ if title is None else title)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.7 * high), high)  # leaves the lower right free for the legend
    ax.legend(loc="lower right", frameon=False, fontsize="small")


# ---------------------------------------------------------------------------- a convolution on bits

_CELL = 0.27  # inches
_GAP = 0.45  # inches between two matrices side by side
_BETWEEN = 0.12  # inches between two channels
_LARGEST = 12  # pixels or windows side by side: more are not legible
_PLUS_MINUS = "\N{MINUS SIGN}", "+"


@picture(size=None)
def convolution(
    x: ArrayLike,
    weight: ArrayLike,
    positions: ArrayLike | Sequence[tuple[int, int]] = ((0, 0),),
    stride: int = 1,
    threshold: int = 0,
    *,
    ax: Place = None,
) -> Axes:
    """Draw a convolution on bits, step by step: window, XNOR, popcount, sum, threshold.

    At the top are the image with the windows, the filter, and the sums and signs of all windows.
    Below is a line for each window in `positions`: its bits (1 for +1, 0 for -1), the filter's
    bits, their agreement (XNOR), and the sum 2 p - K of K bits, p of them equal.

    Parameters
    ----------
    x : (C, H, W) of ±1
        At most 12 pixels high and wide.
    weight : (C, kh, kw) or (1, C, kh, kw) of ±1
        One filter.
    positions : (int, int) or sequence of such pairs
        Row and column of the windows to show, in the output.
    stride : int
    threshold : int
        The output is +1 where the sum is at least this.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        If an array has values other than ±1, or a shape or a position does not fit.
    """
    x, weight, positions = _checked_convolution(x, weight, positions, stride)
    channels, kh, kw = weight.shape
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape)[0, ::stride, ::stride]
    sums = (windows * weight).sum((-3, -2, -1), dtype=int)  # (rows, columns)
    cell = _CELL
    tall, step = max(x.shape[1] * channels, len(sums)), kh * channels
    between = _BETWEEN * (channels - 1)
    lefts = np.cumsum([0, x.shape[2] * cell + _GAP, kw * cell + _GAP, sums.shape[1] * cell + _GAP])
    columns = np.cumsum([1.2, kw * cell + _GAP, kw * cell + _GAP, kw * cell + 0.2])
    right = max(lefts[3] + sums.shape[1] * cell + 0.2, columns[3] + 2.0)
    first = -tall * cell - between - 0.6  # top of the first window's line
    height = step * cell + between + 0.3
    limits = (-0.2, right, first - len(positions) * height + 0.15, 0.45)
    ax, scale = sheet(ax, limits)
    title = f"image, {channels} channels" if channels > 1 else "image"
    _panels(ax, x, lefts[0], 0, scale, title, texts=_PLUS_MINUS)
    _panels(ax, weight, lefts[1], 0, scale, "filter", texts=_PLUS_MINUS)
    _panels(ax, [sums], lefts[2], 0, scale, "sums", colors=("white", "white"))
    _panels(ax, [np.where(sums >= threshold, 1, -1)], lefts[3], 0, scale,
            f"sum ≥ {_signed(threshold)}", texts=_PLUS_MINUS)  # fmt: skip
    outline = {"linewidth": 2.2 * scale, "zorder": 3}
    for number, ((row, column), look) in enumerate(zip(positions, _OUTLINES, strict=False)):
        color, outline["linestyle"] = look
        for i in range(channels):
            top = -i * (x.shape[1] * cell + _BETWEEN) - row * stride * cell
            corner = column * stride * cell, top
            _outline(ax, corner, (kw * cell, kh * cell), color, inset=0.03 * number, **outline)
        for left in lefts[2:]:
            _outline(ax, (left + column * cell, -row * cell), (cell, cell), color, **outline)
        top = first - number * height
        middle = top - (step * cell + between) / 2
        _outline(ax, (0, middle + cell / 2), (cell, cell), color, **outline)
        ax.text(0.4, middle, f"row {row},\ncolumn {column}", fontsize=9 * scale, va="center")
        titles = ("window", "filter", "XNOR") if number == 0 else ("", "", "")
        _draw_sum(ax, windows[row, column], weight, threshold, titles, columns, top, middle, scale)
    return ax


def _draw_sum(ax, window, weight, threshold, titles, columns, top, middle, scale):
    """A line of the picture: the bits of a window and the filter, XNOR, popcount and output."""
    agree, width = window * weight, weight.shape[2] * _CELL
    for left, array, title in zip(columns, (window, weight, agree), titles, strict=False):
        look = {"colors": ("white", tint(_AGREE, 0.6))} if array is agree else {}
        _panels(ax, array, left, top, scale, title, texts=("0", "1"), **look)
    for left, symbol in zip(columns[:2], ("⊙", "="), strict=True):
        ax.text(
            left + width + _GAP / 2, middle, symbol, fontsize=13 * scale, ha="center", va="center"
        )
    count, ones, total = weight.size, np.count_nonzero(agree > 0), agree.sum()
    is_plus = total >= threshold
    text = (
        f"popcount: {ones} of {count} agree\nsum = 2·{ones} \N{MINUS SIGN} {count} = "
        f"{_signed(total)}\n{_signed(total)} {'≥' if is_plus else '<'} {_signed(threshold)}: "
        f"output {_signed(1 if is_plus else -1)}"
    )
    ax.text(columns[3], middle, text, fontsize=9 * scale, va="center", linespacing=1.5)


def _panels(ax, arrays, left, top, scale, title="", **look):
    """The matrices of all channels below one another, with a title."""
    for i, array in enumerate(arrays):
        _cells(ax, array, (left, top - i * (len(array) * _CELL + _BETWEEN)), scale, **look)
    if title:
        ax.text(left, top + 0.1, title, fontsize=9 * scale, va="bottom")


_OUTLINES = (  # colour and line style of each window
    ("black", "-"), (PALETTE[4], (0, (3, 1))), (PALETTE[2], (0, (1, 1))),
    (PALETTE[3], (0, (4, 1, 1, 1))), (PALETTE[5], (0, (6, 2))), ("0.55", (0, (2, 2))),
)  # fmt: skip


def _signed(number):
    return f"{number:+d}".replace("-", "\N{MINUS SIGN}") if number else "0"


def _checked_convolution(x, weight, positions, stride):
    """Convert and check the arguments of `convolution`."""
    x, weight = np.asarray(x), np.asarray(weight)
    weight = weight[0] if weight.ndim == 4 and len(weight) == 1 else weight
    for name, array in (("x", x), ("weight", weight)):
        if array.ndim != 3 or not np.isin(array, (-1, 1)).all():
            raise ValueError(
                f"convolution: {name} must be (channels, height, width) of ±1, got shape "
                f"{array.shape} with values {np.unique(array)[:4]}; take the signs first"
            )
    if len(x) != len(weight) or min(np.subtract(x.shape, weight.shape)) < 0:
        raise ValueError(
            f"convolution: weight of shape {weight.shape} does not fit x of shape {x.shape}"
        )
    if max(x.shape) > _LARGEST:
        raise ValueError(
            f"convolution: x of shape {x.shape} is too large for a picture; show at most "
            f"{_LARGEST} pixels and channels, such as x[:1, :8, :8]"
        )
    if not isinstance(stride, int | np.integer) or stride < 1:
        raise ValueError(f"convolution: stride must be an int >= 1, got {stride!r}")
    shape = tuple((a - b) // stride + 1 for a, b in zip(x.shape[1:], weight.shape[1:], strict=True))
    positions = [tuple(map(int, place)) for place in np.reshape(positions, (-1, 2))]
    if not 1 <= len(positions) <= len(_OUTLINES):
        raise ValueError(
            f"convolution: positions must be 1 to {len(_OUTLINES)} pairs, got {len(positions)}"
        )
    for place in positions:
        if not all(0 <= i < n for i, n in zip(place, shape, strict=True)):
            raise ValueError(
                f"convolution: position {place} is outside of the output of shape {shape}"
            )
    return x.astype(int), weight.astype(int), positions


def _cells(ax, array, corner, scale, texts=None, colors=(MINUS, PLUS)):
    """Draw a matrix as cells, below and to the right of a corner.

    Parameters
    ----------
    texts, colors : pairs, optional
        For negative and positive values; without texts the numbers themselves.
    """
    from matplotlib.patches import Rectangle

    for (i, j), value in np.ndenumerate(array):
        color = colors[int(value > 0)]
        place = corner[0] + j * _CELL, corner[1] - (i + 1) * _CELL
        ax.add_patch(
            Rectangle(place, _CELL, _CELL, facecolor=color, edgecolor="0.75", linewidth=0.6 * scale)
        )
        ax.text(
            place[0] + _CELL / 2, place[1] + _CELL / 2,
            _signed(value) if texts is None else texts[int(value > 0)], ha="center",
            va="center_baseline", fontsize=(8 if texts is None else 9) * scale,
            color="white" if color == MINUS else "black",
        )  # fmt: skip


def _outline(ax, corner, size, color, inset=0.0, **look):
    """Draw a frame with a white edge, visible on any colour."""
    from matplotlib.patches import Rectangle

    (left, top), (width, height) = corner, size
    place = (left + inset, top - height + inset), width - 2 * inset, height - 2 * inset
    below = {**look, "linewidth": 1.7 * look["linewidth"], "linestyle": "-"}
    ax.add_patch(Rectangle(*place, facecolor="none", edgecolor="white", **below))
    ax.add_patch(Rectangle(*place, facecolor="none", edgecolor=color, **look))


# --------------------------------------------------------------------------- sums and thresholds


@picture(size=(7.5, 4.0))
def accumulators(
    sums: ArrayLike, thresholds: ArrayLike, flip: ArrayLike = False, *, ax: Place = None
) -> None:
    """Plot a histogram of a binary layer's sums, split by the sign that they become.

    Sums of K signs are integers, K, K - 2, ... -K. A batch norm and a sign after them are one
    comparison per channel (see `kernels.signs.thresholds`): each bar is split into the sums that
    become -1 and those that become +1. Above the bars is the threshold, or a mark for that of each
    channel.

    Parameters
    ----------
    sums : (..., C) integers
        The sums of C channels; any shape with a single threshold.
    thresholds : int or (C,) integers
        Sums of at least the threshold become +1.
    flip : bool or (C,) bool
        Where true, sums below the threshold become +1.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        If the sums are not integers, or the thresholds do not fit the channels.
    """
    sums, thresholds = np.asarray(sums), np.atleast_1d(thresholds)
    if not sums.size or not np.array_equal(sums, np.round(sums)):
        raise ValueError(
            f"accumulators: sums must be integers, got {sums.dtype} of shape {sums.shape}; a layer "
            "with real inputs or weights has no such sums"
        )
    if thresholds.ndim != 1 or (len(thresholds) > 1 and sums.shape[-1:] != thresholds.shape):
        raise ValueError(
            f"accumulators: expects one threshold, or one for each of the last axis of sums, got "
            f"shape {thresholds.shape} for sums of shape {sums.shape}"
        )
    flip = np.broadcast_to(flip, thresholds.shape)
    sums = sums.astype(np.int64)
    is_plus = (sums >= thresholds) != flip
    low, high = int(sums.min()), int(sums.max())
    step = 1 if np.any((sums - low) % 2) else 2  # sums of K signs are all odd or all even
    values = np.arange(low, high + 1, step)
    bottom = np.zeros(len(values))
    for side, color, label in ((~is_plus, MINUS, "becomes \N{MINUS SIGN}1"),
                               (is_plus, PLUS, "becomes +1")):  # fmt: skip
        counts = np.bincount((sums[side] - low) // step, minlength=len(values))
        ax.bar(values, counts, 0.86 * step, bottom, color=color, label=label)
        bottom += counts
    ax.set(xlabel="sum", ylabel="count", xlim=(low - step, high + step))
    borders = low + step * (-((low - thresholds) // step) - 0.5)  # between two bars
    borders = np.where((thresholds > low) & (thresholds <= high), borders, np.nan)
    _draw_thresholds(ax, thresholds, flip, borders, bottom.max())
    whole_numbers(ax, "x")
    legend_beside(ax)


def _draw_thresholds(ax, thresholds, flip, borders, top):
    """Mark the borders at thresholds, NaN for none, above bars of height `top`."""
    if len(thresholds) == 1:
        side = "<" if flip[0] else "≥"
        ax.axvline(borders[0], color="black", linestyle="--", linewidth=1.2,
                   label=f"threshold: +1 where sum {side} {thresholds[0]}")  # fmt: skip
        return
    heights = top * (1.06 + 0.24 * (np.arange(len(thresholds)) + 0.5) / len(thresholds))
    for turned, marker, label in (
        (False, ">", "thresholds: +1 from here on"), (True, "<", "thresholds: +1 below"),
    ):  # fmt: skip
        shown = np.isfinite(borders) & (flip == turned)
        if shown.any():
            ax.plot(
                borders[shown], heights[shown], marker, color="black", markersize=4,
                linestyle="none", label=f"{label} ({np.count_nonzero(shown)})",
            )  # fmt: skip
    outside = np.count_nonzero(np.isnan(borders))
    if outside:
        ax.plot([], [], " ", label=f"thresholds outside of these sums ({outside})")
    ax.axhline(1.04 * top, color="0.8", linewidth=0.8)
    ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= top])
    ax.set_ylim(0, 1.33 * top)


@picture(size=(7.5, 4.0))
def layer_accumulators(
    model: Module | deploy.PackedModel,
    x: ArrayLike,
    layer: str,
    channel: int | None = None,
    *,
    ax: Place = None,
) -> None:
    """Plot the sums of a model's layer for some data, with the learned thresholds.

    Parameters
    ----------
    model : Module or PackedModel
        A Module is compiled first.
    x : (N, *input_shape) float32
        Preprocessed as for training.
    layer : str
        The name of a binary layer, as in ``model.named_modules()``.
    channel : int, optional
        Default: all channels together.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        If the layer's sums are not compared with thresholds. CompileError, also a ValueError, if
        the model has no packed form.
    """
    x = np.asarray(x)
    packed = model if isinstance(model, deploy.PackedModel) else deploy.compile(model, x.shape[1:])
    compared = {
        packed.steps[step.inputs[0]].name.split(" (")[0]: step
        for step in packed.steps
        if step.operation == "threshold"
    }
    if layer not in compared:
        raise ValueError(
            f"layer_accumulators: layer {layer!r} has no sums with thresholds after them; "
            f"these have: {', '.join(compared) or 'none'}"
        )
    wanted = compared[layer].inputs[0]
    sums = next(result for i, (_, result) in enumerate(packed.run(packed.check_input(x)))
                if i == wanted)  # fmt: skip
    thresholds, flip = (compared[layer].arrays[name] for name in ("thresholds", "flip"))
    title = f"{packed.steps[wanted].name}, {sums.size // sums.shape[-1]:,} sums per channel"
    if channel is not None:
        if not -sums.shape[-1] <= channel < sums.shape[-1]:
            raise ValueError(
                f"layer_accumulators: channel must be one of {sums.shape[-1]}, got {channel!r}"
            )
        sums, thresholds, flip = sums[..., channel], thresholds[channel], flip[channel]
        title += f": channel {channel}"
    accumulators(sums, thresholds, flip, ax=ax)
    ax.set_title(title, fontsize="medium")
