"""Arrays as images: signs, filters, images, matrices, tables, partitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.plots.canvas import MINUS, PLUS, fills, picture, whole_numbers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from tinybnn.plots.canvas import Place
    from tinybnn.typing import Array


@picture
def signs(array: ArrayLike, title: str = "", *, ax: Place = None) -> None:
    """Draw a matrix of ±1: -1 is blue, +1 orange, and NaN is left blank.

    Parameters
    ----------
    array : (rows, columns) of ±1
    """
    from matplotlib.colors import ListedColormap

    ax.imshow(array, cmap=ListedColormap([MINUS, PLUS]), vmin=-1, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)


@picture
def filters(weight: Array, columns: int = 8, title: str = "", *, ax: Place = None) -> None:
    """Draw convolution filters side by side, one tile each.

    Parameters
    ----------
    weight : (O, C, kh, kw) of ±1
        The first input channel of each filter is shown.
    columns : int
    title : str
    """
    count, _, height, width = weight.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for i, tile in enumerate(weight[:, 0]):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = tile
    signs(sheet, title, ax=ax)
    ax.set_frame_on(False)


@picture
def images(
    images: ArrayLike | Sequence[Array],
    columns: int = 10,
    title: str = "",
    labels: Sequence[str] | None = None,
    *,
    ax: Place = None,
) -> None:
    """Draw images side by side in rows, from white (0) to black (1), or in colour.

    Parameters
    ----------
    images : sequence of (C, H, W) arrays
        Equal shapes, C = 1 or 3, values from 0 to 1.
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
            ax.text(*place, labels[i], ha="center", va="center", fontsize="x-small")
    if channels == 1:
        ax.imshow(sheet[..., 0], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    else:
        ax.imshow(np.nan_to_num(sheet, nan=1.0), interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)
    ax.set_frame_on(False)


@picture
def heat_map(
    array: ArrayLike,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    limits: tuple[float, float] = (0, 1),
    *,
    ax: Place = None,
) -> None:
    """Draw a matrix as colours from blue through white to orange; with names, its numbers as well.

    Parameters
    ----------
    array : (rows, columns)
    columns, rows : sequences of str, optional
        Names. With `columns` each cell shows its number.
    xlabel, ylabel : str
    limits : (float, float)
        The values of full blue and full orange.
    """
    from matplotlib.colors import LinearSegmentedColormap

    array = np.asarray(array)
    colors = LinearSegmentedColormap.from_list("signs", [MINUS, "white", PLUS])
    drawn = ax.imshow(array, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    ax.set(xticks=[], yticks=[], xlabel=xlabel, ylabel=ylabel)
    if columns is None:
        ax.get_figure().colorbar(drawn, ax=ax)
        return
    slanted = {}
    if max(map(len, columns)) > 6:
        slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(columns)), columns, fontsize="small", **slanted)
    ax.set_yticks(range(len(rows)), rows, fontsize="small")
    for (i, j), value in np.ndenumerate(array):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize="small")


@picture
def table(rows: Sequence[Sequence[str]], header: Sequence[str], *, ax: Place = None) -> None:
    """Draw a table of text.

    Parameters
    ----------
    rows : sequence of sequences of str
    header : sequence of str
    """
    ax.axis("off")
    drawn = ax.table(rows, colLabels=header, loc="center", cellLoc="left", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(10)
    drawn.scale(1, 1.6)
    drawn.auto_set_column_width(range(len(header)))


@picture
def partition(
    labels: ArrayLike,
    parts: Sequence[Array],
    classes: Sequence[str] | None = None,
    *,
    ax: Place = None,
) -> None:
    """Draw the samples of clients: a bar for each client, a colour (and hatch) for each class.

    Parameters
    ----------
    labels : (N,) integers
    parts : list of arrays
        Positions of each client's samples, as `federated.iid` and similar functions return them.
    classes : sequence of str, optional
        Names of the classes; default: the labels.
    """
    labels = np.asarray(labels)
    present = np.unique(labels)
    counts = np.array([[np.count_nonzero(labels[part] == c) for c in present] for part in parts])
    left = np.cumsum(counts, axis=1) - counts  # (clients, classes)
    for i, (c, fill) in enumerate(zip(present, fills(), strict=False)):
        name = str(c) if classes is None else classes[c]
        ax.barh(np.arange(len(parts)), counts[:, i], 0.9, left[:, i], label=name, **fill)
    ax.set(xlabel="samples", ylabel="client", ylim=(len(parts) - 0.4, -0.6))
    whole_numbers(ax, "y")
    ax.legend(
        title="class", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
        fontsize="small", handlelength=1.0, borderaxespad=0.0, ncols=1 + (len(present) - 1) // 20,
    )  # fmt: skip
