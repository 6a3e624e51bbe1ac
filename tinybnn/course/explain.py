"""Describe a wrong answer: the mistake, the input, the actual and the expected answer."""

from __future__ import annotations

import functools
import json
import os
import re
from typing import Any

import numpy as np

from tinybnn.course.catalogue import CHAPTERS, student_file
from tinybnn.course.child import PACKAGE, Files
from tinybnn.course.exercise import DOCSTRING, Exercise, Wrong
from tinybnn.course.folder import material

_WIDTH = 90  # characters of a line
_ROWS, _COLUMNS = 8, 12  # of a table of values
_SIGNS = 16  # longer rows of +1 and -1 are shown as + and -
_LONGEST = 600  # characters of a value


def explain(wrong: Wrong, exercise: Exercise, folder: str | os.PathLike[str]) -> str:
    """Format the message for a student.

    Parameters
    ----------
    wrong : Wrong
    exercise : Exercise
    folder : PathLike
        The course folder; lines of its files are quoted.

    Returns
    -------
    str
        Several lines: the mistake, the input, the actual and the wanted answer, what to read.
    """
    lines = [wrong.why]
    cause = wrong.cause or wrong.__cause__
    if cause is not None and (line := Files(folder).line(cause)):
        lines += _labelled("in", [line])
    for name, value in wrong.inputs.items():
        first, *rest = shown(value)
        indent = " " * (len(name) + 3)
        lines += _labelled("with", [f"{name} = {first}", *(indent + text for text in rest)])
    if wrong.wanted:
        lines += _labelled(wrong.labels[0], shown(wrong.got))
        lines += _labelled(wrong.labels[1], [wrong.wanted])
    elif wrong.expected is not None:
        lines += _answers(wrong.got, wrong.expected, wrong.labels)
    return "\n".join(lines + _labelled("read", [_reading(wrong, exercise)]))


def _reading(wrong, exercise):
    """Refer to the section, or to the docstring for formal matters."""
    formal = wrong.cause is not None or isinstance(wrong.got, np.dtype)
    formal = formal or (wrong.got is None and wrong.expected is not None)
    section = wrong.section or (DOCSTRING if formal else exercise.section)
    if section == DOCSTRING:
        return f"{PACKAGE}/{student_file(exercise, '').name}, docstring of {exercise.name}"
    return f"{notebook(section, exercise.number)}, section {section!r}"


def _labelled(label, lines):
    """Put lines after a label; the lines after the first are indented."""
    return [f"  {label if i == 0 else '':<7} {line}".rstrip() for i, line in enumerate(lines)]


def _answers(got, expected, labels):
    """Show the actual above the wanted answer, with marks where they differ if they fit."""
    table = _table(got, expected, labels)
    if table is not None:
        return table
    texts = _same_width(shown(got), shown(expected))
    lines = [line for label, text in zip(labels, texts, strict=True)
             for line in _labelled(label, text)]  # fmt: skip
    if _comparable(got, expected):
        got, expected = np.asarray(got), np.asarray(expected)
        where = np.argwhere(_unlike(got, expected))
        first = tuple(int(i) for i in where[0])
        lines += _labelled("differ", [
            f"{len(where)} of {expected.size} values; the first at {list(first)}: "
            f"{labels[0]} {_text(got[first])}, {labels[1]} {_text(expected[first])}"
        ])  # fmt: skip
    return lines


def _same_width(*texts):
    """Pad integers shown as bits to equal width; other lines stay unchanged."""
    if not all(len(lines) == 1 and re.fullmatch("0b[01]+", lines[0]) for lines in texts):
        return texts
    width = max(len(lines[0]) for lines in texts)
    return [["0b" + lines[0][2:].zfill(width - 2)] for lines in texts]


def _comparable(got, expected):
    """Whether two answers are arrays of numbers of equal shape that differ."""
    kinds = (np.ndarray, list, np.generic)
    if not (isinstance(got, kinds) and isinstance(expected, kinds)):
        return False
    try:
        got, expected = np.asarray(got), np.asarray(expected)
    except ValueError:
        return False
    numbers = got.dtype.kind in "biuf" and expected.dtype.kind in "biuf"
    return numbers and got.shape == expected.shape != () and _unlike(got, expected).any()


def _unlike(got, expected):
    with np.errstate(all="ignore"):
        return (got != expected) & ~((got != got) & (expected != expected))


def _table(got, expected, labels):
    """Show two arrays as rows of values, one above the other; None if unlike or too large."""
    if not _comparable(got, expected):
        return None
    got, expected = np.asarray(got), np.asarray(expected)
    unlike = _unlike(got, expected)
    first = np.argwhere(unlike)[0][: max(got.ndim - 2, 0)]
    where = tuple(int(i) for i in first)  # with more dimensions, the first matrix that differs
    got, expected, unlike = (np.atleast_2d(a[where]) for a in (got, expected, unlike))
    rows, columns = got.shape
    if rows > _ROWS or columns > _COLUMNS:
        return None
    cells = [[_text(v) for v in row] for row in (*got, *expected)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if sum(widths) + 2 * columns > _WIDTH:
        return None
    name = f"{list(where)} " if where else ""
    lines = []
    for i in range(rows):
        lines.append(name * (i == 0) + " " * len(name) * (i > 0) + _row(cells[i], widths))
        if unlike[i].any():
            marks = ["^" * len(cells[i][j]) * bool(unlike[i, j]) for j in range(columns)]
            lines.append(" " * len(name) + _row(marks, widths))
    wanted = [" " * len(name) + _row(row, widths) for row in cells[rows:]]
    return _labelled(labels[0], lines) + _labelled(labels[1], wanted)


def _row(cells, widths):
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _text(value):
    """Format a number with enough digits to distinguish it from its neighbours."""
    return str(value.item()) if np.asarray(value).dtype == np.float64 else str(value)


def shown(value: Any) -> list[str]:
    """Format a value of the student or of a check as lines of limited length and number."""
    try:
        text = _described(value)
    except Exception as error:  # its repr is the student's code
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ... ({len(text):,} characters)"
    lines = text.split("\n")
    return lines if len(lines) <= 2 * _ROWS else [*lines[: 2 * _ROWS], "..."]


def _described(value):
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, np.generic):
        return f"{value} ({value.dtype})"
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, (tuple, list)) and any(_holds(v) for v in value):
        opening, closing = "()" if isinstance(value, tuple) else "[]"
        parts = ",\n".join(_described(v) for v in value)
        return opening + parts.replace("\n", "\n ") + closing
    if _holds(value) and type(value).__repr__ is object.__repr__:
        return f"{type(value).__name__} of {_array(value.data)}"
    return repr(value)


def _holds(value):
    """Whether a value is an array, or a tensor around one."""
    return isinstance(value, np.ndarray) or isinstance(getattr(value, "data", None), np.ndarray)


def _array(value):
    row = value.ndim == 1 and value.size > _SIGNS and value.dtype.kind in "if"
    if row and np.isin(value, (1, -1)).all():
        text = "".join(np.where(value > 0, "+", "-"))
        rows = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
        return f"{value.size} values +1 and -1 ({value.dtype}), from element 0 on:\n{rows}"
    text = np.array2string(value, separator=", ", threshold=96, edgeitems=3, max_line_width=_WIDTH)
    if value.size > 96 or value.size == 0 or value.ndim > 2:
        return f"{value.dtype} of shape {value.shape}:\n{text}"
    return text if value.dtype.kind in "ib" else f"{text} ({value.dtype})"


@functools.cache
def _texts():
    """Map each notebook's name to its file as text."""
    folder = material()
    paths = sorted(folder.glob("*.ipynb")) if folder is not None else []
    return {os.path.splitext(p.name)[0]: p.read_text(encoding="utf-8") for p in paths}


def notebook(section: str, number: str) -> str:
    """Return the name of the notebook with a section, preferably of the exercise's chapter."""
    heading = json.dumps(f"## {section}", ensure_ascii=False)[1:-1]
    chapter = CHAPTERS[number[:2]].notebooks
    for name in (*chapter, *_texts()):
        if heading in _texts().get(name, ""):
            return name
    return chapter[0]
