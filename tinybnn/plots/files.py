"""A packed file as a map of its bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tinybnn import storage
from tinybnn.deploy import PackedModel
from tinybnn.plots.canvas import MINUS, PALETTE, PLUS, legend_beside, picture

if TYPE_CHECKING:
    from tinybnn.plots.canvas import Place

_COLORS = {
    "header: JSON": PALETTE[4],
    "signs of weights": MINUS,
    "thresholds": PLUS,
    "floats": PALETTE[2],
    "other integers": PALETTE[5],
    "frames: zip and .npy": "0.72",
    "directory of the zip": "0.35",
}
_ROWS = 32  # at most


@picture(size=(10.0, 5.5))
def packed_file(path: str | os.PathLike[str], *, ax: Place = None) -> None:
    """Draw a packed model's file as rows of bytes, coloured by their meaning.

    Areas are proportional to bytes. Arrays are labelled with their layer and name where the label
    fits.

    Parameters
    ----------
    path : str or PathLike
        A file written by `PackedModel.save`.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    StorageError
        If the file is not a packed model, or damaged.
    OSError
        If it cannot be read.
    """
    from matplotlib.patches import Patch, Rectangle

    PackedModel.load(path)  # refuses other and damaged files
    parts = _parts(path)
    size = parts[-1][2]
    width = 16
    while width * _ROWS < size:
        width *= 2
    sizes, labels = dict.fromkeys(_COLORS, 0), []
    for kind, start, stop, label in parts:
        sizes[kind] += stop - start
        rectangles = [*_rectangles(start, stop, width)]
        for left, top, wide, high in rectangles:
            ax.add_patch(Rectangle((left, top), wide, high, color=_COLORS[kind], linewidth=0))
        ax.plot([start % width] * 2, [start // width, start // width + 1], color="white", lw=0.8)
        if not label:
            continue
        left, top, wide, high = largest = max(rectangles, key=lambda r: r[2] * r[3])
        text = ax.text(
            left + wide / 2, top + high / 2, label, ha="center", va="center", fontsize="small",
            color="black" if kind == "thresholds" else "white",
        )  # fmt: skip
        labels.append((text, largest))
    handles = []
    for kind, count in sizes.items():
        share = f"{count / size:.0%}" if count >= 0.005 * size else "below 1%"
        handles.append(Patch(color=_COLORS[kind], label=f"{kind}: {count:,} bytes, {share}"))
    rows = -(-size // width)
    places = range(0, rows, -(-rows // 12))
    ax.set(xlim=(0, width), ylim=(rows, 0), xlabel=f"byte in a row of {width:,}")
    ax.set_yticks(places, [f"{row * width:,}" for row in places])
    ax.set_ylabel("first byte of a row")
    ax.set_title(f"{os.path.basename(path)}: {size:,} bytes", fontsize="medium")
    legend_beside(ax, [handle for handle, n in zip(handles, sizes.values(), strict=True) if n])
    _remove_labels_that_do_not_fit(ax, labels)


def _parts(path):
    """List (kind, first byte, end, label) of all parts of the file, in order."""
    metadata, members = storage.read_header(path)["metadata"], storage.layout(path)
    roles = {}  # the first step that has an array names it
    for step in metadata["steps"]:
        stored = step["arrays"]
        for name, key in stored.items() if isinstance(stored, dict) else ():
            kind = None
            if name in step["bits"]:
                kind = "signs of weights"
            elif step["operation"] == "threshold":
                kind = "thresholds"
            roles.setdefault(key, (kind, f"{step['name'].split(' (')[0]}: {name}"))
    parts = []
    for member in members:
        kind, label = roles.get(member.name, (None, member.name))
        if member is members[0]:
            kind, label = "header: JSON", "header"
        elif kind is None:
            kind = "floats" if member.dtype.kind == "f" else "other integers"
        parts.append(("frames: zip and .npy", member.start, member.body, ""))
        if member.stop > member.body:
            parts.append((kind, member.body, member.stop, label))
    parts.append(("directory of the zip", members[-1].stop, os.path.getsize(path), "directory"))
    return parts


def _rectangles(start, stop, width):
    """Yield the rectangles (left, top, width, height) of a run of bytes in rows, at most three."""
    first, last = start // width, (stop - 1) // width
    left, right = start % width, (stop - 1) % width + 1
    if first == last:
        yield left, first, right - left, 1
        return
    if left:
        yield left, first, width - left, 1
        first += 1
    if right < width:
        yield 0, last, right, 1
        last -= 1
    if first <= last:
        yield 0, first, width, last - first + 1


def _remove_labels_that_do_not_fit(ax, labels):
    """Remove texts that exceed their rectangles (left, top, width, height)."""
    ax.figure.draw_without_rendering()  # fixes the place of the axes
    for text, (left, top, wide, high) in labels:
        box = text.get_window_extent()
        (x0, y0), (x1, y1) = ax.transData.transform([(left, top + high), (left + wide, top)])
        if box.x0 < x0 or box.x1 > x1 or box.y0 < y0 or box.y1 > y1:
            text.remove()
