"""Tables: as text for a terminal, as HTML for a notebook and as Markdown."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from html import escape

WIDTH: int = 100  # most columns of a terminal that a table of text fills
_MOST = 60  # rows of a table in HTML


def text(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    align: str | None = None,
    width: int = WIDTH,
) -> str:
    """Format a table in lines of at most `width` characters; cells that are too long are wrapped.

    Parameters
    ----------
    header : sequence of str
    rows : sequence of sequences of str
    align : str, optional
        "<" (left) or ">" (right) for each column. By default the first column is aligned left, the
        others right.
    width : int
        At least three for each column.

    Returns
    -------
    str

    >>> print(text(["layer", "bytes"], [["conv1 (Conv2d)", "1,024"], ["bn1", "8"]]))
    layer           bytes
    conv1 (Conv2d)  1,024
    bn1                 8
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        widths[widths.index(max(widths))] -= 1  # the widest column gives way
    return "\n".join(line(cells, widths, align) for cells in (header, *rows))


def line(cells: Sequence[str], widths: Sequence[int], align: str | None = None) -> str:
    """Format a row of a table with columns of fixed widths, two spaces apart.

    Parameters
    ----------
    cells : sequence of str
    widths : sequence of int
    align : str, optional
        As for `text`.

    Returns
    -------
    str
        One line, or several if a cell is wrapped.
    """
    wrapped = [_wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for parts in itertools.zip_longest(*wrapped, fillvalue=""):
        aligned = [
            f"{part:{side}{width}}"
            for part, side, width in zip(parts, _sides(align, len(cells)), widths, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def _sides(align: str | None, count: int) -> str:
    return "<" + ">" * (count - 1) if align is None else align


def _wrap(cell, width):
    """A cell as lines of at most `width` characters; one that fits keeps its indentation."""
    if len(cell) <= width and cell.isprintable():
        return [cell]
    return textwrap.wrap(cell, width) or [""]


def markdown(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Format a table in Markdown; cells are converted to text."""
    lines: list[Sequence[object]] = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def html(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    align: str | None = None,
    title: str = "",
) -> str:
    """Format a table in HTML; text is escaped, and the middle of a very long table left out.

    Parameters
    ----------
    header, rows, align
        As for `text`; cells are converted to text.
    title : str
        Caption above the table.

    Returns
    -------
    str
    """
    rows, align = list(rows), _sides(align, len(header))
    shown = [_row("td", cells, align) for cells in rows]
    if len(rows) > _MOST:
        between = f"… {len(rows) - _MOST:,} more …"
        gap = f'<tr><td colspan="{len(header)}" style="text-align:left">{between}</td></tr>'
        shown[_MOST // 2 : -_MOST // 2] = [gap]
    caption = '<caption style="caption-side:top;text-align:left;font-weight:bold">{}</caption>'
    return "\n".join(
        [
            "<table>",
            *([caption.format(escape(title))] if title else []),
            f"<thead>{_row('th', header, align)}</thead>",
            "<tbody>",
            *shown,
            "</tbody>",
            "</table>",
        ]
    )


def _row(tag, cells, align):
    side_of = {"<": "left", ">": "right"}
    return "<tr>{}</tr>".format(
        "".join(
            f'<{tag} style="text-align:{side_of[side]}">{escape(str(cell))}</{tag}>'
            for cell, side in zip(cells, align, strict=True)
        )
    )
