"""Pictures. Each function draws on given axes, so that figures can be composed."""

from __future__ import annotations

import numpy as np

# One blue and one orange for everything binary: -1 and +1, float and packed.
MINUS, PLUS = "#33658a", "#f6ae2d"


def figure(*args, **kwargs):
    """A matplotlib figure with constrained layout; needs no display."""
    from matplotlib.figure import Figure

    return Figure(*args, layout="constrained", **kwargs)


def history(axes, history):
    """Loss (left axis) and accuracy (right axis) over the epochs of a training.History."""
    epochs = history["epoch"]
    axes.plot(epochs, history["loss"], color=MINUS, label="training loss")
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    right = axes.twinx()
    right.plot(epochs, history["accuracy"], color=PLUS, label="training accuracy")
    if "val_accuracy" in history.rows[0]:
        right.plot(epochs, history["val_accuracy"], "--", color=PLUS, label="validation accuracy")
    right.set(ylabel="accuracy", ylim=(0, 1.02))
    lines = axes.get_lines() + right.get_lines()
    axes.legend(lines, [line.get_label() for line in lines], loc="center right", frameon=False)


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
