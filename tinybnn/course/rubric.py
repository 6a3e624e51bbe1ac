"""How many points each exercise gives."""

from __future__ import annotations

import math
import os

from tinybnn.course.catalogue import select
from tinybnn.storage import StorageError, read_json


def read_rubric(path: str | os.PathLike[str] | None = None) -> dict[str, float]:
    """Read the points of each exercise from a file; without a file each gives one point.

    Parameters
    ----------
    path : str or PathLike, optional
        JSON: an object from "all", a chapter ("04") or an exercise ("04.2") to points, such as
        ``{"all": 0, "04": 1, "04.4": 3}``. An exercise's own entry goes before its chapter's, and
        that before "all". What has no entry gives one point.

    Returns
    -------
    dict of str to float
        By the exercise's number, in the order of the course. Exercises of no points are left out.

    Raises
    ------
    ValueError
        If the file is no rubric.
    OSError
        If it cannot be read.
    """
    points = {one.number: 1.0 for one in select("all")}
    entries = {} if path is None else read_json(path)
    if not isinstance(entries, dict):
        raise StorageError(
            f"{os.fspath(path)}: expected an object from exercises to points, such as "
            f'{{"all": 0, "04": 1}}, got {type(entries).__name__}'
        )
    for what in sorted(entries, key=_how_narrow):
        value = entries[what]
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_valid(value):
            raise StorageError(
                f"{os.fspath(path)}: {what[:40]!r}: expected a number of points >= 0, "
                f"got {str(value)[:40]!r}"
            )
        try:
            points.update({one.number: float(value) for one in select(what)})
        except ValueError as error:
            raise StorageError(f"{os.fspath(path)}: {error}") from None
    points = {number: value for number, value in points.items() if value}
    if not points:
        raise StorageError(f"{os.fspath(path)}: no exercise gives points")
    return points


def _how_narrow(what):
    """Order of the entries: "all", then chapters, then exercises."""
    return what != "all", "." in what


def _is_valid(value):
    return 0 <= value < math.inf and value < 1e6
